"""A run by several processes is killed, told to end, and goes on with other numbers of them: it ends as one process would."""

import json
import shutil
import signal
import time
from pathlib import Path

import parallel_ranks
import pytest
import torch
from saes_toys import RESID, Synthetic, shards_of
from unweave.saes import TrainConfig, train
from unweave.saes.runs.checkpoints import Checkpoints, read_checkpoint

STEPS, BATCH = 500, 120
CONFIG = TrainConfig(
    latents=96, k=4, batch=BATCH, tokens=STEPS * BATCH, log_every=20, checkpoint_every=10, dead_after=1500, lr=2e-3
)
FLAGS = ["--latents", "96", "--k", "4", "--batch", str(BATCH), "--tokens", str(STEPS * BATCH), "--log-every", "20",
         "--checkpoint-every", "10", "--dead-after", "1500", "--lr", "2e-3"]  # fmt: skip
SAE_TRAIN = "from unweave.saes.cli import main; main()"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return shards_of(tmp_path_factory.mktemp("shards") / "shards", {RESID: Synthetic(24, 48, 4).batch(3000, 0)})


def sae_train(shards, out: Path, ranks: int, *more: str):
    return parallel_ranks.start(["-c", SAE_TRAIN, str(shards.folder), "--out", str(out), *FLAGS, *more], ranks)


def until_step(out: Path, step: int, seconds: float = 120) -> None:
    """Wait for a checkpoint of this step or a later one."""
    end = time.monotonic() + seconds
    while not any(int(path.stem.removeprefix("checkpoint-")) >= step for path in out.glob("checkpoint-*")):
        assert time.monotonic() < end, f"no checkpoint of step {step} in {out}"
        time.sleep(0.01)


def ended(processes, seconds: float = 120) -> list[int]:
    try:
        return [process.wait(seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def a_flipped_bit_is_passed_over(run: Path, copy: Path, capsys) -> None:
    shutil.copytree(run, copy)
    newest, before = Checkpoints(copy).paths()[:2]
    largest = max(newest.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[-5] ^= 4
    largest.write_bytes(data)
    about, tensors = Checkpoints(copy).latest()
    assert f"checkpoint-{about['step']:08d}" == before.name
    assert "is not as it was written" in capsys.readouterr().err
    assert tensors["weight.W_enc"].shape == (96, 24) and tensors["silent_tokens"].dtype == torch.int64


def test_a_run_survives_a_killed_rank_a_signal_and_other_numbers_of_ranks(shards, tmp_path, capsys):
    out = tmp_path / "run"
    four = sae_train(shards, out, 4, "--latent-ranks", "2", "--keep", "2")
    until_step(out, 20)
    four[3].kill()
    four[3].wait()
    time.sleep(0.2)
    for process in four:  # as torchrun does with the others
        process.kill()
        process.wait()
    newest = Checkpoints(out).paths()[0]
    assert newest.is_dir() and len(list(newest.glob("*.safetensors"))) == 4
    a_flipped_bit_is_passed_over(out, tmp_path / "flipped", capsys)
    killed_at = read_checkpoint(Checkpoints(out).paths()[0])[0]["step"]

    alone = sae_train(shards, out, 1, "--resume")
    until_step(out, killed_at + 20)
    alone[0].send_signal(signal.SIGTERM)
    assert ended(alone) == [143]
    told_at = read_checkpoint(Checkpoints(out).paths()[0])[0]["step"]
    assert killed_at < told_at < STEPS

    two = sae_train(shards, out, 2, "--resume", "--latent-ranks", "2")
    until_step(out, told_at + 20)
    two[1].send_signal(signal.SIGTERM)  # one rank hears it, both end, at one step
    assert ended(two) == [143, 143]
    assert sum(path.name.startswith("checkpoint-") for path in out.iterdir()) == 1

    assert ended(sae_train(shards, out, 2, "--resume")) == [0, 0]
    assert not list(out.glob("*checkpoint*"))
    straight = tmp_path / "straight"
    train(CONFIG, shards, straight, progress=False)
    resumed, expected = lines(out), lines(straight)
    assert [line["step"] for line in resumed] == list(range(20, STEPS + 1, 20))
    # Rounding differs, and a token whose k-th and next latent are all but level then takes the other: that is all.
    for one, other in zip(resumed, expected, strict=True):
        assert one["fvu"] == pytest.approx(other["fvu"], rel=1e-5 if one["step"] <= 100 else 0.03), one["step"]
