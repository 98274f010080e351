"""Numbers of a run go to jsonl and to what else is asked for."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from unweave.saes import TrainConfig, UserError, train
from unweave.saes.runs.loggers import Logger

CONFIG = TrainConfig(latents=16, k=2, batch=32, tokens=32 * 6, log_every=2)


def stream():
    return (torch.randn(32, 6, generator=torch.Generator().manual_seed(number)) for number in range(20))


def run(out, *loggers):
    return train(CONFIG, stream(), out, device="cpu", progress=False, loggers=loggers)


class Kept:
    def __init__(self):
        self.lines, self.closed = [], 0

    def log(self, line):
        self.lines.append(line)

    def close(self):
        self.closed += 1


def test_a_logger_of_ones_own_hears_what_jsonl_hears(tmp_path):
    mine = Kept()
    assert isinstance(mine, Logger)
    run(tmp_path / "run", mine)
    assert mine.lines == [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in mine.lines] == [2, 4, 6] and mine.closed == 1


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_is_begun_told_and_ended(name, tmp_path, monkeypatch):
    heard = []
    module = ModuleType(name)
    module.init = lambda **given: heard.append(("init", given["project"], given["name"], given["config"]["batch"]))
    module.log = lambda values, step: heard.append(("log", step, values["fvu"] > 0, "step" in values))
    module.finish = lambda: heard.append(("finish",))
    monkeypatch.setitem(sys.modules, name, module)
    run(tmp_path / "run", name)
    logged = [("log", step, True, False) for step in (2, 4, 6)]
    assert heard == [("init", "unweave", "run", 32), *logged, ("finish",)]


def test_tensorboard_gets_a_scalar_for_each_number(tmp_path, monkeypatch):
    seen, closed = [], []
    writer = SimpleNamespace(
        add_text=lambda *_: None,
        add_scalar=lambda name, value, step: seen.append((name, step)),
        close=lambda: closed.append(1),
    )
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = lambda folder: seen.append(folder) or writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    run(tmp_path / "run", "tensorboard")
    assert seen[0] == str(tmp_path / "run" / "tensorboard") and closed == [1]
    assert {step for name, step in seen[1:] if name == "fvu"} == {2, 4, 6}


def test_what_is_unknown_or_not_installed_is_a_user_error(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="tensorboard, wandb, trackio"):
        run(tmp_path / "a", "mlflow")
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UserError, match="pip install trackio"):
        run(tmp_path / "b", "trackio")
