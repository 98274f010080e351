"""SIGTERM and Ctrl-C: the step under way is finished, a checkpoint written, loggers closed, and the run goes on as if nothing had been."""

import signal
import threading

import pytest
import torch
from saes_toys import shards_of
from unweave.saes import TrainConfig, grid, train, train_many
from unweave.saes.cli import parse_and_run, sae_train
from unweave.saes.runs.run import Run
from unweave.saes.runs.stopping import Stopping
from unweave.saes.sweep import names_of

CONFIG = TrainConfig(site="a", latents=32, k=4, tokens=64 * 30, batch=64, checkpoint_every=100, log_every=4)
ENDS = {signal.SIGTERM: SystemExit, signal.SIGINT: KeyboardInterrupt}
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


@pytest.fixture
def shards(tmp_path):
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)) + 5
    return shards_of(tmp_path / "shards", {"a": x})


@pytest.fixture(autouse=True)
def handlers():
    before = [signal.getsignal(number) for number in ENDS]
    yield
    assert [signal.getsignal(number) for number in ENDS] == before


class Hears:
    def __init__(self):
        self.steps, self.closed = [], 0

    def log(self, line):
        self.steps.append(line["step"])

    def close(self):
        self.closed += 1


def sending(patch, *signals, step=13):
    """Within that step, the signals arrive."""
    log = Run.log

    def logged(self, state, metrics):
        if state.step == step:
            for number in signals:
                signal.raise_signal(number)
        log(self, state, metrics)

    patch.setattr(Run, "log", logged)


def run(shards, out=None, **options):
    return train(CONFIG, shards, out, device="cpu", progress=False, **options)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("number", ENDS)
def test_a_run_ends_with_a_checkpoint_of_its_last_step(shards, tmp_path, monkeypatch, capsys, number):
    straight, hears = run(shards, tmp_path / "straight"), Hears()
    with monkeypatch.context() as patch, pytest.raises(ENDS[number]) as ended:
        sending(patch, number)
        run(shards, tmp_path / "out", loggers=[hears])
    assert number == signal.SIGINT or ended.value.code == 143
    assert [path.name for path in (tmp_path / "out").glob("checkpoint*")] == ["checkpoint-00000013.safetensors"]
    assert hears.steps == [4, 8, 12] and hears.closed == 1
    said = capsys.readouterr().err
    assert "after step 13 of 30" in said and "--resume goes on" in said
    assert same(run(shards, tmp_path / "out", resume=True), straight)
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("straight", "out")]
    assert [line.split(', "tokens_per_s"')[0] for line in logs[0]] == [
        line.split(', "tokens_per_s"')[0] for line in logs[1]
    ]


def test_a_second_ctrl_c_ends_at_once(shards, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        sending(monkeypatch, signal.SIGTERM, signal.SIGTERM, signal.SIGINT)
        run(shards, tmp_path / "out")
    assert not list((tmp_path / "out").glob("checkpoint*"))


def test_a_second_sigterm_changes_nothing(shards, tmp_path, monkeypatch):
    with pytest.raises(SystemExit):
        sending(monkeypatch, signal.SIGTERM, signal.SIGTERM)
        run(shards, tmp_path / "out")
    assert list((tmp_path / "out").glob("checkpoint*"))


def test_a_run_without_a_folder_says_that_nothing_is_kept(shards, monkeypatch, capsys):
    with pytest.raises(KeyboardInterrupt):
        sending(monkeypatch, signal.SIGINT)
        run(shards)
    assert "nothing of it can be resumed" in capsys.readouterr().err


def test_a_signal_in_the_last_step_ends_too_and_nothing_is_left_to_do(shards, tmp_path, monkeypatch):
    straight = run(shards)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        sending(patch, signal.SIGTERM, step=30)
        run(shards, tmp_path / "out")
    monkeypatch.setattr(Run, "log", None)
    assert same(run(shards, tmp_path / "out", resume=True), straight)


def test_every_run_of_a_sweep_gets_its_checkpoint(shards, tmp_path, monkeypatch):
    configs = grid(CONFIG, k=[2, 4])
    straight = train_many(configs, shards, device="cpu", progress=False)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        sending(patch, signal.SIGINT)
        train_many(configs, shards, tmp_path / "out", device="cpu", progress=False)
    steps = [sorted(path.name for path in (tmp_path / "out" / name).glob("checkpoint*")) for name in names_of(configs)]
    assert steps == [["checkpoint-00000013.safetensors"], ["checkpoint-00000012.safetensors"]]
    resumed = train_many(configs, shards, tmp_path / "out", device="cpu", progress=False, resume=True)
    assert all(map(same, straight, resumed))


@pytest.mark.parametrize("number", ENDS)
def test_the_command_ends_with_the_code_of_the_signal(shards, tmp_path, monkeypatch, capsys, number):
    flags = "--site a --latents 32 --k 4 --batch 64 --tokens 1920 --device cpu".split()
    command = [str(shards.folder), "--out", str(tmp_path / "out"), *flags]
    with monkeypatch.context() as patch:
        sending(patch, number)
        try:
            code = parse_and_run(sae_train, command, "sae-train")
        except SystemExit as ended:
            code = ended.code
    assert code == CODES[number]
    assert parse_and_run(sae_train, [*command, "--resume"], "sae-train") == 0
    assert "Traceback" not in capsys.readouterr().err


def test_training_in_another_thread_leaves_signals_alone(shards):
    done = []
    thread = threading.Thread(target=lambda: done.append(run(shards)))
    thread.start()
    thread.join()
    assert len(done) == 1


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Stopping() as stopping:
            signal.raise_signal(signal.SIGINT)
        assert stopping.signal is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_after_the_last_look_still_ends():
    with pytest.raises(KeyboardInterrupt), Stopping():
        signal.raise_signal(signal.SIGINT)
