"""Training that is killed at any moment, or stopped by a full disk or another trainer, ends as if nothing had happened; memory stays."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from saes_toys import shards_of

HOST = Path(__file__).parent / "saes_kill_host.py"


@pytest.fixture
def shards(tmp_path):
    x = torch.randn(700, 16, generator=torch.Generator().manual_seed(0)) + 2
    return shards_of(tmp_path / "shards", {"a": x})


def host(*given, seconds=120):
    """The lines that the host printed, the last one read."""
    done = subprocess.run(
        [sys.executable, "-P", str(HOST), *map(str, given)], capture_output=True, text=True, timeout=seconds
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    return lines[:-1], json.loads(lines[-1])


def test_a_killed_run_ends_as_one_that_was_left_alone(shards, tmp_path):
    _, told = host("killed", "shards", shards.folder, tmp_path, 4, 0)
    assert told["kills"] >= 4


@pytest.mark.slow
@pytest.mark.parametrize("source", ["shards", "stream"])
def test_runs_killed_many_times_end_as_one_that_was_left_alone(shards, tmp_path, source):
    _, told = host("killed", source, shards.folder, tmp_path, 60, 1, seconds=900)
    assert told["kills"] >= 60 and told["steps"] >= 2  # how many different checkpoints are met depends on the machine


def test_a_second_trainer_is_refused_at_once_until_the_first_is_dead(shards, tmp_path):
    _, told = host("two", shards.folder, tmp_path / "out")
    assert len(told["refused"]) == 2 and all("another process is writing there" in said for said in told["refused"])
    assert told["waited"] < 2 and told["killed"] == -9 and told["goes_on"] == 0


def test_a_full_disk_ends_the_run_and_it_goes_on_when_there_is_room(shards, tmp_path):
    (line,), told = host("full", shards.folder, tmp_path / "out")
    said = json.loads(line)
    assert "expected to write a checkpoint to" in said["said"] and "go on with --resume" in said["said"]
    (kept,) = [name for name in said["left"] if "checkpoint" in name]
    assert 0 < int(kept[11:19]) <= 21  # a busy machine leaves some steps without one
    assert told == {"code": 7, "goes_on": 0}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not write")
def test_a_folder_that_may_not_be_written_is_one_line(shards, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == "root" and folder.name.startswith(("pytest", "popen-gw", "test_")):
            folder.chmod(0o755)
    lines, told = host("readonly", shards.folder, out)
    assert told == {"code": 2} and lines == [
        f"error: Permission denied: {out}/run; check the path, its permissions and the disk"
    ]


GROWTH = 8.0  # MiB between a third of a run and its end; a leak of one checkpoint in five steps is 70 MiB in 1000 steps


@pytest.fixture
def many_shards(tmp_path):
    x = torch.randn(12_000, 64, generator=torch.Generator().manual_seed(0)) + 2
    found = shards_of(tmp_path / "shards", {"a": x})
    assert len(found.manifest["shards"]) == 4
    return found


def soaked(source, shards, folder, seconds, leak="no"):
    _, told = host("soak", source, shards.folder, folder, seconds, leak, seconds=seconds * 3 + 120)
    return told["steps"], told["last_mib"] - told["first_mib"]


def test_memory_does_not_grow(many_shards, tmp_path):
    """Checkpoints, a log line a step, batches read ahead from windows of shards."""
    steps, growth = soaked("shards", many_shards, tmp_path, 12)
    assert steps > 30 and growth < GROWTH


@pytest.mark.slow
@pytest.mark.parametrize("source", ["shards", "stream"])
def test_memory_does_not_grow_in_thousands_of_steps(many_shards, tmp_path, source):
    steps, growth = soaked(source, many_shards, tmp_path, 240)
    assert steps > 1000 and growth < GROWTH


@pytest.mark.slow
def test_a_leak_is_seen(many_shards, tmp_path):
    assert soaked("shards", many_shards, tmp_path, 20, "leak")[1] > 2 * GROWTH
