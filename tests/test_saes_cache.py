import os
import signal
import subprocess
import sys
import textwrap
from itertools import pairwise

import pytest
import torch
import toys
from saes_toys import MLP_IN, MLP_OUT, RESID, cached, model, texts
from torch.testing import assert_close
from unweave.saes import Document, Shards, UserError, cache, resolve_site, to_tokens
from unweave.saes.shards.writer import ShardWriter
from unweave.saes.text import given_blocks, token_blocks

ALL = (RESID, MLP_IN, MLP_OUT)


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix == ".safetensors"}


def columns(shards: Shards) -> dict[str, torch.Tensor]:
    sites = {site: shards[site][:] for site in shards.sites}
    return sites | {name: getattr(shards, name) for name in ("tokens", "positions", "documents")}


def same(one: Shards, other: Shards) -> None:
    for (name, a), (other_name, b) in zip(columns(one).items(), columns(other).items(), strict=True):
        assert name == other_name
        assert_close(a, b, rtol=0, atol=0)


def blocks_of(shards: Shards):
    starts = [*(shards.positions == 0).nonzero().squeeze(1).tolist(), len(shards)]
    return [slice(start, stop) for start, stop in pairwise(starts)]


# transformers computes Llama's norms in float32 whatever the model's dtype.
@pytest.mark.parametrize(("name", "atol"), [("gpt2", 1e-10), ("llama", 1e-5)])
def test_rows_are_the_activations_of_each_block_run_alone(tmp_path, name, atol):
    shards = cached(tmp_path / "a", ALL, name=name)
    assert len(blocks_of(shards)) > 12
    for rows in blocks_of(shards):
        with torch.no_grad():
            _, run = model(name).run_with_cache(shards.tokens[rows][None])
        for site in ALL:
            assert_close(shards[site][rows], run[site][0], rtol=0, atol=atol)


def test_rows_are_every_token_of_the_text_in_order(tmp_path):
    shards = cached(tmp_path / "a")
    expected = [[], [], []]
    for document, text in enumerate(texts()):
        ids = [int(word[1:]) for word in text.split()]
        for start in range(0, len(ids), 15):
            block = [0, *ids[start : start + 15]]
            for column, values in zip(expected, (block, range(len(block)), [document] * len(block)), strict=True):
                column.extend(values)
    assert [shards.tokens.tolist(), shards.positions.tolist(), shards.documents.tolist()] == expected


def test_padding_and_batching_never_show(tmp_path):
    one = cached(tmp_path / "one", ALL, batch=1)
    many = cached(tmp_path / "many", ALL, batch=7, shard_mib=0)
    assert len(many.manifest["shards"]) > 2
    for (_, a), (_, b) in zip(columns(one).items(), columns(many).items(), strict=True):
        assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_given_blocks_are_used_exactly_as_they_come(tmp_path):
    rows = torch.randint(0, toys.VOCAB, (5, 7), generator=torch.Generator().manual_seed(0))
    shards = cache(model(), rows, [RESID], tmp_path / "a", dtype=torch.float64, progress=False)
    assert_close(shards.tokens.view(5, 7), rows)
    assert shards.documents.tolist() == [i for i in range(5) for _ in range(7)]
    ragged = cache(model(), list(rows[:, :5]) + [rows[0]], [RESID], tmp_path / "b", dtype=torch.float64, progress=False)
    assert_close(ragged[RESID][25:], shards[RESID][:7], rtol=1e-10, atol=1e-10)


def test_the_manifest_says_what_is_there(tmp_path):
    shards = cached(tmp_path / "a", ["blocks.1.hook_mlp_out", "blocks.1.hook_resid_post", MLP_OUT], dtype=torch.float32)
    manifest = shards.manifest
    assert manifest["finished"] is True
    assert manifest["rows"] == len(shards) == sum(entry["rows"] for entry in manifest["shards"])
    assert manifest["rows"] < manifest["target_rows"]
    assert manifest["sites"] == [{"name": MLP_OUT, "width": 64}, {"name": RESID, "width": 64}]
    assert manifest["dtype"] == "float32"
    assert shards[RESID][:3].dtype == torch.float32
    assert manifest["context"] == 16
    assert manifest["model"]["bos"] == 0
    assert sum(entry["blocks"] for entry in manifest["shards"]) == len(blocks_of(shards))


def test_the_same_place_has_one_name():
    names = {"blocks.1.hook_mlp_out": MLP_OUT, "model.layers.1.mlp": MLP_OUT, "model.layers.1.mlp.input": MLP_IN,
             "model.layers.1": RESID, "blocks.1.hook_resid_post": RESID, "blocks.2.hook_resid_pre": "blocks.2.hook_resid_pre"}  # fmt: skip
    assert {name: resolve_site(model(), name) for name in names} == names


@pytest.mark.parametrize("tokens", [1, 2, 17, 100])
def test_exactly_the_asked_number_of_tokens_is_kept(tmp_path, tokens):
    some, whole = cached(tmp_path / "some", tokens=tokens), cached(tmp_path / "whole")
    assert len(some) == tokens
    assert_close(some[RESID][:], whole[RESID][:tokens], rtol=1e-10, atol=1e-10)


def test_same_input_same_bytes(tmp_path):
    cached(tmp_path / "a", ALL)
    cached(tmp_path / "b", ALL)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert Shards.open(tmp_path / "a").fingerprint == Shards.open(tmp_path / "b").fingerprint
    assert Shards.open(tmp_path / "a").fingerprint != cached(tmp_path / "c", ALL, tokens=50).fingerprint


class Stop(Exception):
    """What kills a run in these tests."""


def stopped(folder, shards: int, monkeypatch, where: str = "_flush", **options) -> Shards:
    """What is left of a run that was stopped when it had written that many shards."""
    original = getattr(ShardWriter, where)

    def stop(self, *args):
        if len(self.manifest["shards"]) >= shards:
            raise Stop
        return original(self, *args)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(ShardWriter, where, stop)
        cached(folder, ALL, shard_mib=0, **options)
    return Shards.open(folder, unfinished=True)


@pytest.mark.parametrize("shards", [0, 1, 4])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, monkeypatch, shards):
    left = stopped(tmp_path / "cut", shards, monkeypatch)
    assert len(left.manifest["shards"]) == shards
    assert not left.manifest["finished"]
    resumed, straight = (
        cached(tmp_path / "cut", ALL, shard_mib=0, resume=True),
        cached(tmp_path / "straight", ALL, shard_mib=0),
    )
    same(resumed, straight)
    assert resumed.fingerprint == straight.fingerprint
    assert contents(tmp_path / "cut") == contents(tmp_path / "straight")


@pytest.mark.parametrize("options", [{}, {"tokens": 97}, {"tokens": 41}])
def test_a_run_stopped_between_its_last_shard_and_the_end_can_be_finished(tmp_path, monkeypatch, options):
    straight = cached(tmp_path / "straight", ALL, shard_mib=0, **options)
    stopped(tmp_path / "cut", 0, monkeypatch, "finish", **options)
    same(cached(tmp_path / "cut", ALL, shard_mib=0, resume=True, **options), straight)


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    cached(tmp_path / "a", ALL)
    before = contents(tmp_path / "a") | {"manifest": (tmp_path / "a" / "manifest.json").read_bytes()}
    cached(tmp_path / "a", ALL, resume=True)
    assert before == contents(tmp_path / "a") | {"manifest": (tmp_path / "a" / "manifest.json").read_bytes()}


def test_a_killed_process_leaves_whole_shards_and_can_be_resumed(tmp_path):
    script = """
        import contextlib, os, signal, sys
        sys.path.insert(0, {tests!r})
        from pathlib import Path
        from saes_toys import RESID, MLP_IN, MLP_OUT, cached
        from unweave.saes import io
        whole, calls = io.atomic_path, []
        @contextlib.contextmanager
        def half(path):
            with whole(path) as temporary:
                yield temporary
                calls.extend([path] if path.suffix == ".safetensors" else [])
                if len(calls) == 3:
                    os.truncate(temporary, temporary.stat().st_size // 2)
                    os.kill(os.getpid(), signal.SIGKILL)
        io.atomic_path = half
        cached(Path({folder!r}), (RESID, MLP_IN, MLP_OUT), shard_mib=0)
    """
    here = os.path.dirname(os.path.abspath(__file__))
    code = textwrap.dedent(script).format(tests=here, folder=str(tmp_path / "cut"))
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = Shards.open(tmp_path / "cut", unfinished=True)
    assert len(left.manifest["shards"]) == 2
    straight = cached(tmp_path / "straight", ALL, shard_mib=0)
    assert_close(left[RESID][:], straight[RESID][: len(left)], rtol=1e-10, atol=1e-10)
    with pytest.raises(UserError, match="finished"):
        Shards.open(tmp_path / "cut")
    for (_, a), (_, b) in zip(
        columns(cached(tmp_path / "cut", ALL, shard_mib=0, resume=True)).items(), columns(straight).items(), strict=True
    ):
        assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_resuming_with_something_else_is_refused_and_changes_nothing(tmp_path, monkeypatch):
    stopped(tmp_path / "cut", 2, monkeypatch)
    before = contents(tmp_path / "cut") | {"manifest": (tmp_path / "cut" / "manifest.json").read_bytes()}
    attempts = [
        (dict(dtype=torch.float32), "dtype"),
        (dict(context=12), "context"),
        (dict(tokens=999), "target_rows"),
        (dict(name="llama"), "model"),
        (dict(count=1), "text"),
    ]
    for options, says in attempts:
        with pytest.raises(UserError, match=says):
            cached(tmp_path / "cut", ALL, resume=True, **options)
    with pytest.raises(UserError, match="sites"):
        cached(tmp_path / "cut", (RESID,), resume=True)
    with pytest.raises(UserError, match="text"):
        cache(
            model(), texts(seed=5), ALL, tmp_path / "cut", dtype=torch.float64, context=16, resume=True, progress=False
        )
    assert before == contents(tmp_path / "cut") | {"manifest": (tmp_path / "cut" / "manifest.json").read_bytes()}


def test_a_folder_with_files_is_not_written_to(tmp_path):
    cached(tmp_path / "a")
    before = contents(tmp_path / "a")
    with pytest.raises(UserError, match="--resume or another folder"):
        cached(tmp_path / "a")
    assert contents(tmp_path / "a") == before
    other = tmp_path / "b"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(UserError, match="has files"):
            cached(other, resume=resume)
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]


def test_a_mistake_before_the_first_shard_does_not_spoil_the_folder(tmp_path):
    for wrong in (dict(context=1000), dict(count=0)):
        with pytest.raises(UserError):
            cached(tmp_path / "a", **wrong)
    assert len(cached(tmp_path / "a")) > 0


@pytest.mark.parametrize("site", ["blocks.1.hook_resid", "blocks.9.hook_resid_post", "", "blocks.1.attn.hook_pattern"])
def test_a_site_that_has_no_rows_is_a_user_error(tmp_path, site):
    with pytest.raises(UserError, match="site"):
        cached(tmp_path / "a", (site,))


def test_half_a_surrogate_pair_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="text 1 that UTF-8 can hold"):
        cache(model(), ["whole", "half \ud800"], [RESID], tmp_path / "a", context=16, progress=False)


@pytest.mark.parametrize(
    "given", [[], [""], ["  "], "", [Document("a", "text", " ")], torch.zeros(0, 4, dtype=torch.int64)]
)
def test_empty_text_is_a_user_error(tmp_path, given):
    with pytest.raises(UserError, match=r"text|token"):
        cache(model(), given, [RESID], tmp_path / "a", progress=False)


@pytest.mark.parametrize(
    "blocks",
    [[torch.tensor([toys.VOCAB])], [torch.tensor([-1, 2])], [torch.zeros(65, dtype=torch.int64)], torch.arange(4)],
)
def test_impossible_token_blocks_are_a_user_error(tmp_path, blocks):
    with pytest.raises(UserError, match=r"expected token blocks of 1 to 64 ids in \[0, 100\)"):
        cache(model(), blocks, [RESID], tmp_path / "a", progress=False)


@pytest.mark.parametrize("options", [dict(tokens=0), dict(context=1), dict(context=65), dict(batch=0)])
def test_impossible_numbers_are_a_user_error(tmp_path, options):
    with pytest.raises(UserError, match="expected"):
        cached(tmp_path / "a", **options)
    with pytest.raises(UserError, match="one site"):
        cached(tmp_path / "a", ())


def test_activations_that_are_not_finite_stop_the_run_and_keep_what_was_written(tmp_path):
    own = toys.boot("gpt2")
    own.W_E[7] = torch.nan
    good = [text for text in texts(30) if "w7 " not in text + " "][:10]
    with pytest.raises(UserError, match="finite"):
        cache(
            own,
            [*good, "w3 w7 w9"],
            [RESID],
            tmp_path / "a",
            dtype=torch.float64,
            shard_mib=0,
            batch=3,
            context=16,
            progress=False,
        )
    left = Shards.open(tmp_path / "a", unfinished=True)
    assert len(left) > 50
    assert left[RESID][:].isfinite().all()


def test_activations_beyond_the_stored_dtype_are_a_user_error(tmp_path):
    own = toys.boot("gpt2")
    own.W_E[7] *= 1e6
    with pytest.raises(UserError, match="fit float16"):
        cache(own, ["w3 w7 w9"], [RESID], tmp_path / "a", dtype=torch.float16, context=16, progress=False)


def test_blocks_never_span_documents_and_start_with_one_bos():
    blocks = list(token_blocks(model(), [*texts(5), "", Document("x", "text", "w5 w6")], 8))
    assert all(block.tokens[0] == 0 and (block.tokens[1:] != 0).all() and len(block.tokens) <= 8 for block in blocks)
    assert [block.tokens.tolist() for block in blocks if block.document == 6] == [[0, 5, 6]]
    assert not [block for block in blocks if block.document == 5]
    assert to_tokens(model(), "w5 w6").tolist() == [0, 5, 6]
    with pytest.raises(UserError, match="empty"):
        to_tokens(model(), "")


def test_blocks_are_made_as_they_are_asked_for():
    def endless():
        while True:
            yield torch.tensor([3, 4])

    blocks = given_blocks(endless(), 64, toys.VOCAB)
    assert next(blocks).document == 0
    assert next(blocks).document == 1
