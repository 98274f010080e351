import ast
import dataclasses
import inspect
import json
import re
import shlex
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from saes_toys import shards_of
from unweave.saes import Dictionary, DictionaryConfig, TrainConfig, UserError, cli


def test_flat_and_nested_constructors_agree():
    flat = TrainConfig(latents=64, k=5, site="a", site_out="b", skip=True, tokens=100)
    inner = DictionaryConfig(latents=64, k=5, site=("a",), site_out=("b",), skip=True)
    assert flat == TrainConfig(dictionary=inner, tokens=100)
    assert TrainConfig(dictionary=inner, k=7) == TrainConfig(dictionary=dataclasses.replace(inner, k=7))
    assert dataclasses.replace(flat, k=6).dictionary.k == 6
    assert dataclasses.replace(flat, seed=3).dictionary == inner
    with pytest.raises(TypeError):
        TrainConfig(width=3)


@pytest.mark.parametrize(
    "config", [TrainConfig(), TrainConfig(site="a", site_out="b", lr=0.1, dead_after=7, latents=9, k=9)]
)
def test_json_round_trip(config):
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_derived_values_by_hand():
    config = TrainConfig(latents=16_384, tokens=100_001, batch=1000)
    assert config.steps == 101
    assert config.peak_lr == pytest.approx(2e-3)
    assert config.dead_tokens == 5000
    assert [TrainConfig(lr=0.5).peak_lr, TrainConfig(dead_after=3).dead_tokens] == [0.5, 3]
    assert TrainConfig(tokens=10**9).dead_tokens == 10_000_000
    assert [DictionaryConfig(site=("a",)).write, DictionaryConfig(site=("a",), site_out=("b",)).write] == ["a", "b"]
    assert not DictionaryConfig(site=("a",), site_out=("a",)).is_transcoder


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (dict(k=65, latents=64), "lower --k"),
        (dict(k=0), "k of 1"),
        (dict(latents=0, k=0), "k of 1"),
        (dict(site=("a", "a")), "each site once"),
        (dict(site=("a", "b"), site_out=("c", "c")), "each site once"),
        (dict(skip=True), "--site-out with --skip"),
        (dict(site="a", site_out="a", skip=True), "--site-out with --skip"),
        (dict(tokens=0), "tokens"),
        (dict(batch=0), "batch"),
        (dict(log_every=0), "log_every"),
        (dict(checkpoint_every=0), "checkpoint_every"),
        (dict(drop_positions=-1), "drop_positions"),
        (dict(warmup=-1.0), "warmup"),
        (dict(decay=-0.1), "decay"),
        (dict(held_out=1.0), "held_out"),
        (dict(warmup=float("nan")), "warmup"),
        (dict(lr=0.0), "lr"),
        (dict(lr=-1.0), "lr"),
        (dict(lr=float("nan")), "lr"),
        (dict(auxk=-1.0), "auxk"),
        (dict(drop_norm=-1.0), "drop_norm"),
        (dict(dead_after=-1), "dead_after"),
        (dict(across="cross_layer"), "several sites"),
        (dict(site=("a", "b"), site_out="c", across="shared"), "a site to write for each"),
        (dict(site=("a", "b"), across="cross_layer", latents=65, k=1), "multiple of 2"),
        (dict(site=("a", "b"), across="cross_layer", latents=64, k=33), "lower --k"),
        (dict(site=("a", "b"), site_out=("c", "d"), skip=True), "one site to read"),
        (dict(matryoshka=(8, 4)), "that rise"),
        (dict(matryoshka=(32,), latents=16, k=1), "at most 16"),
        (dict(penalty="l1"), "sparse by k"),
        (dict(sparsity=1.0), "sparse by k"),
        (dict(activation="relu", penalty="l0"), "l1, anneal, tanh with relu"),
        (dict(activation="relu", bandwidth=2.0), "drop --bandwidth"),
        (dict(activation="jumprelu", bandwidth=0.0), "bandwidth above zero"),
        (dict(ema=1.0), "ema"),
        (dict(clip=-1.0), "clip"),
        (dict(accumulate=0), "accumulate"),
        (dict(seed=2**63), "seed of 64 bits"),
    ],
)
def test_impossible_settings_are_a_user_error(wrong, says):
    with pytest.raises(UserError, match=says):
        TrainConfig(**wrong)


@pytest.mark.parametrize("kind", [DictionaryConfig, TrainConfig])
def test_every_field_has_a_note(kind):
    body = ast.parse(inspect.getsource(kind)).body[0].body
    fields = [node.target.id for node in body if isinstance(node, ast.AnnAssign)]
    noted = [
        node.target.id
        for node, following in pairwise(body)
        if isinstance(node, ast.AnnAssign)
        and isinstance(following, ast.Expr)
        and isinstance(following.value, ast.Constant)
    ]
    assert fields == [field.name for field in dataclasses.fields(kind)]
    assert noted == fields


@pytest.fixture
def folder(tmp_path):
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0)) + 2
    return shards_of(tmp_path / "shards", {"a": x, "b": x * 2}).folder


def sae_train(*arguments) -> int:
    return cli.parse_and_run(cli.sae_train, [str(argument) for argument in arguments], "sae-train")


SMALL = [
    "--latents",
    16,
    "--k",
    3,
    "--tokens",
    500,
    "--batch",
    50,
    "--lr",
    0.01,
    "--seed",
    4,
    "--activation",
    "topk",
    "--device",
    "cpu",
]


def test_sae_train_trains_and_prints_one_json_object(tmp_path, folder, capsys):
    assert sae_train(folder, "--out", tmp_path / "out", "--site", "a", *SMALL, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    own = Dictionary.load(tmp_path / "out")
    assert (own.config.latents, own.config.k, own.read) == (16, 3, "a")
    assert printed["fingerprint"] == own.fingerprint
    assert printed["step"] == 10
    assert printed["rows"] == own.metadata["rows"] and printed["rows"]["by_position"] > 0
    assert {"fvu", "l0", "dead_share", "loss", "out"} <= printed.keys()
    config = TrainConfig.from_dict(json.loads((tmp_path / "out" / "config.json").read_text()))
    assert config == TrainConfig(site="a", latents=16, k=3, tokens=500, batch=50, lr=0.01, seed=4)
    assert sae_train(folder, "--out", tmp_path / "out", "--site", "a", *SMALL, "--resume") == 0
    assert "fingerprint" in capsys.readouterr().out


def test_sae_train_makes_a_skip_transcoder(tmp_path, folder, capsys):
    assert sae_train(folder, "--out", tmp_path / "out", "--site", "a", "--site-out", "b", "--skip", *SMALL) == 0
    own = Dictionary.load(tmp_path / "out")
    assert (own.read, own.write, own.W_skip is not None) == ("a", "b", True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--site", "nowhere"], "expected a cached site"),
        ([], "expected --site"),
        (["--site", "a", "--k", 17], "lower --k"),
        (["--site", "a", "--skip"], "--site-out with --skip"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, folder, capsys, arguments, says):
    assert sae_train(folder, "--out", tmp_path / "out", *SMALL, *arguments, "--json") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert says in captured.err


def test_a_folder_that_is_missing_or_in_use_is_exit_code_2(tmp_path, folder, capsys):
    assert sae_train(tmp_path / "absent", "--out", tmp_path / "out") == 2
    assert "absent" in capsys.readouterr().err
    assert sae_train(folder, "--out", folder, "--site", "a", *SMALL) == 2
    assert "empty folder" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--widths", "3"], ["--k", "many"], ["--activation", "softmax"], []])
def test_a_wrong_flag_is_exit_code_2(tmp_path, folder, capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        sae_train(folder, *arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().out == ""


def test_every_command_refuses_a_seed_that_no_generator_takes(capsys):
    def command(seed: int = 0) -> dict:
        return {"seed": torch.Generator().manual_seed(seed).initial_seed()}

    assert cli.parse_and_run(command, ["--seed", str(2**63 - 1), "--json"], "command") == 0
    assert cli.parse_and_run(command, ["--seed", str(2**63)], "command") == 2
    assert "seed of 64 bits" in capsys.readouterr().err


def test_who_reads_the_first_lines_only_sees_no_traceback():
    code = "from unweave.saes.cli import run_command; run_command(lambda: {'a': 'b' * 10_000_000}, True)"
    command = f"{shlex.quote(sys.executable)} -P -c {shlex.quote(code)} | head -c 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("{", "")


def test_an_interrupt_is_exit_code_130():
    def work():
        raise KeyboardInterrupt

    assert cli.run_command(work, False) == 130


def test_help_lists_the_flags_with_their_notes(capsys):
    with pytest.raises(SystemExit) as caught:
        sae_train("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    flags = "--latents --k --tokens --batch --lr --seed --site --site-out --activation --resume --skip --out --held-out --device"
    assert [flag for flag in flags.split() if not re.search(rf"{flag}[ ,|]", text)] == []
    assert "dictionary.latents" not in text
    assert "Latents that are active on a token" in " ".join(text.replace("│", " ").split())
