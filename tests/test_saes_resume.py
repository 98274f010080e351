"""A run that was stopped and resumed is the run that was not: weights, moments, silence and log, of every rule, layout and source."""

import json

import pytest
import torch
from saes_toys import LAYOUTS, MLP_IN, MLP_OUT, RESID, model, shards_of, texts
from torch.testing import assert_close
from unweave.saes import TrainConfig, stream, train
from unweave.saes.dictionary_config import ACTIVATIONS
from unweave.saes.rows import Pair, ShardRows, StreamRows
from unweave.saes.runs.run import Run

BATCH = 128
RULES = [
    *((rule, {}) for rule in ACTIVATIONS),
    ("topk", dict(matryoshka=(4, 9))),
    ("jumprelu", dict(matryoshka=(5,))),
    ("batch_topk", dict(matryoshka=(4,))),
]
EVERY = [(rule, changes, layout) for rule, changes in RULES for layout in LAYOUTS]
SOME = [("topk", {}, layout) for layout in LAYOUTS] + [(rule, changes, "sae") for rule, changes in RULES[1:]]
SITES = dict(a="blocks.0.hook_resid_post", b=RESID, c=MLP_IN, d=MLP_OUT)  # of the toy


def config(rule="topk", layout="sae", named=None, **changes):
    given = dict(latents=32, k=3, activation=rule, batch=BATCH, tokens=7 * BATCH, drop_norm=3.0, dead_after=BATCH)
    sites = {
        key: tuple((named or {}).get(site, site) for site in value) if key.startswith("site") else value
        for key, value in LAYOUTS[layout].items()
    }
    return TrainConfig(**{**given, "log_every": 2, "checkpoint_every": 3, **sites, **changes})


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    rows = {site: torch.randn(1500, 12, generator=generator) * scale + scale for scale, site in enumerate("abcd", 1)}
    return shards_of(tmp_path_factory.mktemp("rows") / "shards", rows)


def streamed(**changes):
    """Activations of a toy in windows of two or three batches, of text for ten steps."""
    return stream(model(), texts(70), SITES.values(), **{**dict(context=16, batch=4, buffer=300), **changes})


class Stop(Exception):
    pass


def states(monkeypatch, stop=None):
    """What is left of the state of each run that comes to its end; with `stop`, none does: each ends within that step."""
    found, finish, log = [], Run.finish, Run.log

    def finished(self, state, dictionary):
        found.append({name: tensor.clone() for name, tensor in state.tensors().items()})
        finish(self, state, dictionary)

    def logged(self, state, metrics):
        if stop is not None and state.step > stop:
            raise Stop
        log(self, state, metrics)

    monkeypatch.setattr(Run, "finish", finished)
    monkeypatch.setattr(Run, "log", logged)
    return found


def run(own, data, out, **options):
    return train(own, data, out, device="cpu", progress=False, **options)


def log_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{**line, "tokens_per_s": 0} for line in lines]


def stopped_and_resumed(own, data, folder, stop):
    """The state at the end of a run that was stopped; `data` gives it anew each time."""
    with pytest.MonkeyPatch.context() as patch:
        states(patch, stop)
        with pytest.raises(Stop):
            run(own, data(), folder)
    with pytest.MonkeyPatch.context() as patch:
        found = states(patch)
        run(own, data(), folder, resume=True)
    return found[0]


def assert_resumes(own, data, folder, *stops):
    with pytest.MonkeyPatch.context() as patch:
        found = states(patch)
        run(own, data(), folder / "straight")
        (straight,) = found
    for stop in stops:
        again = stopped_and_resumed(own, data, folder / f"stopped{stop}", stop)
        assert straight.keys() == again.keys()
        for name, tensor in straight.items():
            assert_close(again[name], tensor, rtol=0, atol=0, msg=f"{name} after {stop}")
        assert log_of(folder / f"stopped{stop}") == log_of(folder / "straight")
        assert (folder / f"stopped{stop}/cfg.json").read_bytes() == (folder / "straight/cfg.json").read_bytes()
        weights = [(folder / name / "sae_weights.safetensors").read_bytes() for name in ("straight", f"stopped{stop}")]
        assert weights[0] == weights[1]


@pytest.mark.parametrize(("rule", "changes", "layout"), EVERY)
def test_a_run_on_shards_goes_on_bit_for_bit(rule, changes, layout, shards, tmp_path):
    assert_resumes(config(rule, layout, **changes), lambda: shards, tmp_path, 5)


@pytest.mark.parametrize(("rule", "changes", "layout"), SOME)
def test_a_run_on_a_stream_goes_on_bit_for_bit(rule, changes, layout, tmp_path):
    assert_resumes(config(rule, layout, SITES, **changes), streamed, tmp_path, 5)


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory):
    """Six files of about a MiB."""
    x = torch.randn(3000, 512, generator=torch.Generator().manual_seed(0))
    found = shards_of(tmp_path_factory.mktemp("rows") / "shards", {"a": x})
    assert len(found.manifest["shards"]) >= 5
    return found


@pytest.mark.parametrize("rule", ["topk", "batch_topk"])
@pytest.mark.parametrize("window", [1, 2])
def test_a_run_on_windows_of_shards_goes_on_bit_for_bit(rule, window, many_shards, tmp_path):
    own = config(rule, window=window, tokens=30 * BATCH, checkpoint_every=7)  # one and a half epochs
    assert_resumes(own, lambda: many_shards, tmp_path, 4, 20, 29)


def test_windows_are_another_order_of_the_same_rows(many_shards):
    first = [next(ShardRows(config(window=window), many_shards).batches(0)).x for window in (0, 2)]
    where = [torch.cdist(x, many_shards["a"][:]).argmin(1) for x in first]
    files = [len((rows // 500).unique()) for rows in where]
    assert files[0] >= 5 and files[1] <= 3


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_what_is_read_ahead_changes_nothing(ahead, shards, tmp_path, monkeypatch):
    straight, real = run(config(), shards, tmp_path / "usual"), type(shards).batches
    monkeypatch.setattr(type(shards), "batches", lambda *given, **more: real(*given, **more, ahead=ahead))
    again = run(config(), shards, tmp_path / "ahead")
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), again.parameters(), strict=True))
    assert_resumes(config(), lambda: shards, tmp_path, 5)


def test_numbers_of_skipped_batches_are_in_the_log_of_a_resumed_run(tmp_path, monkeypatch):
    """Batch 6 is skipped, the checkpoint is of step 6, the line of step 8: it must tell of both."""

    def poisoned(self, start):
        for step, pair in enumerate(real(self, start), start + 1):
            yield Pair(pair.x * torch.nan, pair.y * torch.nan) if step == 6 else pair

    real = StreamRows.batches
    monkeypatch.setattr(StreamRows, "batches", poisoned)
    assert_resumes(config(named=SITES, log_every=4), streamed, tmp_path, 6)
    assert log_of(tmp_path / "straight")[1]["skipped"] == [6]
