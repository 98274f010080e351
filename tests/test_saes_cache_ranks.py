"""Several processes write the folder of one, and any number of them goes on with what others left."""

import os
import signal
import time

import pytest
from crash_children import FAILED, Children
from plain_toy import cache_toy, everything
from unweave.saes import Shards, UserError
from unweave.saes.shards.split import Processes


@pytest.fixture(scope="module")
def children():
    with Children() as made:
        yield made


@pytest.fixture(scope="module")
def straight(children, tmp_path_factory):
    """What one process writes."""
    folder = tmp_path_factory.mktemp("straight") / "shards"
    assert children.start(folder).wait() == 0
    return everything(folder)


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_write_the_files_of_one(children, straight, tmp_path, world):
    child = children.start(tmp_path / "a", world=world)
    assert child.wait_all() == [0] * world, child.said
    assert everything(tmp_path / "a") == straight


def test_more_processes_than_shards_and_a_target_within_a_shard(children, tmp_path):
    options = {"tokens": 45, "statistics": True}
    alone, shared = children.start(tmp_path / "a", **options), None
    assert alone.wait() == 0
    shared = children.start(tmp_path / "b", world=3, **options)
    assert shared.wait_all() == [0, 0, 0], shared.said
    assert everything(tmp_path / "a") == everything(tmp_path / "b")
    assert len(Shards.open(tmp_path / "b")) == 45


@pytest.mark.parametrize(("killed", "after"), [(0, 1), (1, 1), (1, 3)])
@pytest.mark.parametrize("world", [1, 3])
def test_a_killed_process_is_resumed_by_another_number_of_them(children, tmp_path, killed, after, world):
    count = 600
    folder, whole = tmp_path / "a", tmp_path / "whole"
    child = children.start(folder, world=2, count=count)
    while not (folder / f"shard-{2 * after + killed:05d}.safetensors").exists():
        time.sleep(0.002)
    os.kill(child.pids[killed], signal.SIGKILL)
    codes = child.wait_all()
    assert codes[killed] == -signal.SIGKILL
    assert codes[1 - killed] == FAILED and "another one ended" in child.said
    left = Shards.open(folder, unfinished=True)
    assert not left.manifest["finished"]
    again = children.start(folder, world=world, count=count, resume=True)
    assert again.wait_all() == [0] * world, again.said
    assert children.start(whole, count=count).wait() == 0
    assert everything(folder) == everything(whole)


def test_shards_that_nobody_has_entered_are_taken_as_they_are(children, straight, tmp_path):
    folder = tmp_path / "a"
    cache_toy(folder)
    manifest = Shards.open(folder).manifest
    for number in (3, 4, 6):  # as if written by the processes of a run whose first was killed after shard 1
        entry = manifest["shards"][number]
        (folder / f"entry-{number:05d}.json").write_text(json_of({"entry": entry, "last_document": 4 * number + 3}))
    kept = {**manifest, "finished": False, "fingerprint": "", "shards": manifest["shards"][:2]}
    kept["rows"] = sum(entry["rows"] for entry in kept["shards"])
    (folder / "manifest.json").write_text(json_of(kept))
    times = {number: (folder / f"shard-{number:05d}.safetensors").stat().st_mtime_ns for number in range(8)}
    child = children.start(folder, world=2, resume=True)
    assert child.wait_all() == [0, 0], child.said
    assert everything(folder) == straight
    written = [
        number for number in times if (folder / f"shard-{number:05d}.safetensors").stat().st_mtime_ns != times[number]
    ]
    assert written == [2, 5, 7]


def json_of(data) -> str:
    import json

    return json.dumps(data)


def test_a_mistake_of_the_first_process_is_told_by_all(children, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("mine")
    child = children.start(tmp_path / "a", world=2)
    assert child.wait_all() == [FAILED, FAILED]
    assert child.said.count("has files") == 2
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["thesis.txt"]


def test_an_environment_without_an_address_is_a_user_error(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match="torchrun"):
        Processes.here()
