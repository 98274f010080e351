"""Many dictionaries from one pass: each is what it would have been alone, rows are read once, streams are made once."""

import json

import pytest
import torch
from saes_toys import shards_of
from torch.testing import assert_close
from unweave.saes import Shards, TrainConfig, UserError, grid, train, train_many
from unweave.saes.cli import parse_and_run, sae_train
from unweave.saes.sweep import names_of, parsed

BASE = TrainConfig(site="a", latents=24, k=3, batch=64, tokens=64 * 20, drop_norm=0.0, checkpoint_every=4, log_every=1)


def rows(seed=0, count=800):
    generator = torch.Generator().manual_seed(seed)
    return {site: torch.randn(count, 10, generator=generator) * scale for site, scale in (("a", 1.0), ("b", 4.0))}


@pytest.fixture
def shards(tmp_path):
    return shards_of(tmp_path / "shards", rows())


def options(**more):
    return dict(device="cpu", progress=False, **more)


def same(a, b):
    for name, tensor in a.named_parameters():
        assert_close(dict(b.named_parameters())[name], tensor, rtol=0, atol=0, msg=name)


def test_a_grid_is_every_combination():
    configs = grid(BASE, k=[2, 4], lr=[1e-3, None], site=[("a",), ("b",)])
    assert len(configs) == 8 and len(set(names_of(configs))) == 8
    assert (configs[0].dictionary.k, configs[0].lr, configs[1].dictionary.site) == (2, 1e-3, ("b",))
    assert names_of(configs)[3] == "lr=None,site=b,k=2"
    with pytest.raises(UserError, match="a setting to vary"):
        grid(BASE, kk=[1])


def test_each_run_is_what_it_would_have_been_alone(shards, tmp_path):
    configs = [
        *grid(BASE, k=[2, 4], seed=[0, 1]),
        *grid(BASE, activation=["batch_topk", "jumprelu"], site=[("b",), ("a", "b")]),
    ]
    many = train_many(configs, shards, tmp_path / "many", **options())
    for config, found, name in zip(configs, many, names_of(configs), strict=True):
        same(train(config, shards, **options()), found)
        assert (tmp_path / "many" / name / "cfg.json").exists()


def test_rows_are_read_once_for_all(shards, monkeypatch):
    read, real = [], Shards._batch

    def counted(self, *given, **more):
        read.append(1)
        return real(self, *given, **more)

    def batches(configs):
        read.clear()
        train_many(configs, shards, **options())
        return len(read)

    monkeypatch.setattr(Shards, "_batch", counted)
    # A few are read ahead of the last.
    assert BASE.steps <= batches([BASE]) <= BASE.steps + 4
    assert BASE.steps <= batches(grid(BASE, k=[2, 3, 4, 5])) <= BASE.steps + 4
    assert batches(grid(BASE, seed=[0, 1])) >= 2 * BASE.steps


def test_a_stream_is_made_once():
    made = []

    def stream():
        for number in range(25):
            made.append(number)
            yield rows(number, 64)

    configs = grid(BASE, k=[2, 4], site=[("a",), ("b",)])
    many = train_many(configs, stream(), **options())
    assert made == list(range(len(made))) and len(made) <= 25
    for config, found in zip(configs, many, strict=True):
        same(train(config, (rows(number, 64) for number in range(25)), **options()), found)


def test_an_interrupted_sweep_goes_on(shards, tmp_path, monkeypatch):
    configs = grid(BASE, k=[2, 4], tokens=[64 * 10, 64 * 20])
    straight = train_many(configs, shards, **options())
    real = Shards.batches

    def stopping(self, *args, **kwargs):
        for number, batch in enumerate(real(self, *args, **kwargs)):
            if number == 13:
                raise KeyboardInterrupt
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(Shards, "batches", stopping)
        with pytest.raises(KeyboardInterrupt):
            train_many(configs, shards, tmp_path / "out", **options())
    for a, b in zip(straight, train_many(configs, shards, tmp_path / "out", **options(resume=True)), strict=True):
        same(a, b)


def test_a_config_that_cannot_run_stops_the_sweep_before_it_begins(shards, tmp_path):
    with pytest.raises(UserError, match="cached site"):
        train_many(grid(BASE, site=[("a",), ("nowhere",)]), shards, tmp_path / "out", **options())
    with pytest.raises(UserError, match="got none"):
        train_many([], shards, **options())


def test_settings_are_read_as_the_command_line_reads_them():
    assert parsed("k=16,32") == ("k", [16, 32])
    assert parsed("lr=1e-3,None") == ("lr", [1e-3, None])
    assert parsed("activation=topk,jumprelu") == ("activation", ["topk", "jumprelu"])
    assert parsed("site=a,a+b") == ("site", [("a",), ("a", "b")])
    for wrong in ("k", "k=", "k=many", "nothing=3", "activation=softmax"):
        with pytest.raises(UserError, match="expected a"):
            parsed(wrong)


def test_the_command_trains_a_sweep_and_tells_it_in_a_table(shards, tmp_path, capsys):
    flags = "--site a --latents 24 --k 3 --batch 64 --tokens 640 --drop-norm 0 --device cpu --sweep k=2,4 activation=topk,relu"
    command = [str(shards.folder), "--out", str(tmp_path / "out"), *flags.split()]
    assert parse_and_run(sae_train, [*command, "--json"], "sae-train") == 0
    told = json.loads(capsys.readouterr().out)
    names = ["activation=topk,k=2", "activation=relu,k=2", "activation=topk,k=4", "activation=relu,k=4"]
    assert [row["run"] for row in told["runs"]] == names
    assert told["runs"] == json.loads((tmp_path / "out" / "sweep.json").read_text())["runs"]
    assert [line.split()[0] for line in told["table"]] == ["run", *names]
    assert all((tmp_path / "out" / name / "cfg.json").exists() for name in names)
    assert (
        parse_and_run(sae_train, [str(shards.folder), "--out", str(tmp_path / "x"), "--sweep", "kk=3"], "sae-train")
        == 2
    )
    assert "such as k=16,32" in capsys.readouterr().err


def test_people_are_told_the_length_of_what_is_too_long_to_read():
    from unweave.saes.cli import shown

    assert shown([{"run": "a", "fvu": 0.25}]) == "run a, fvu 0.25"
    assert shown([{"rows": ["x"] * 900}]) == "1 (--json lists them)"
    assert shown(["a line"] * 900).count("a line") == 900
