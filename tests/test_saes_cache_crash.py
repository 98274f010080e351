"""Caching that is killed, refused, or finds its files damaged loses nothing and accepts nothing that is not whole."""

import errno
import logging
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from crash_children import FAILED, Children
from plain_toy import SITES, blocks, cache_toy, everything
from unweave.saes import Shards, UserError
from unweave.saes.models import ModelInfo
from unweave.saes.shards.storage import LocalFolder
from unweave.saes.shards.writer import ShardWriter
from unweave.saes.text import Block, pad_blocks

INFO = ModelInfo("none", "f" * 32, "t" * 32, "None", 2, 4, 64, 100, 0)


@pytest.fixture(scope="module")
def children():
    with Children() as made:
        yield made


@pytest.fixture(scope="module")
def straight(children, tmp_path_factory):
    """What one uninterrupted run writes, and the seconds that the quickest of four takes."""
    seconds = []
    for number in range(4):
        folder = tmp_path_factory.mktemp("straight") / f"{number}"
        start = time.monotonic()
        assert children.start(folder).wait() == 0
        seconds.append(time.monotonic() - start)
    return everything(folder), min(seconds)


def whole_shards(folder: Path, straight: dict[str, bytes]) -> int:
    """Shards that the manifest of a stopped run lists: each is that of the uninterrupted run."""
    if not (folder / "manifest.json").exists():
        return 0
    left = Shards.open(folder, unfinished=True)
    for entry in left.manifest["shards"]:
        assert (folder / entry["file"]).read_bytes() == straight[entry["file"]]
    assert len(left.tokens) == len(left) if len(left) else True
    return len(left.manifest["shards"])


def kill_until(children, straight, tmp_path, kills: int, number: int, code: int) -> None:
    """Kill runs at random moments and resume them, in one folder after another, until so many have been hit."""
    wanted, seconds = straight
    chance = random.Random(0)
    hit = done = 0
    while hit < kills:
        folder, progress = tmp_path / f"folder{done}", 0
        while True:
            child = children.start(folder, resume=True)
            time.sleep(chance.uniform(0, seconds))
            os.kill(child.pid, number)
            ended = child.wait()
            assert ended in (0, code), child.said
            before, progress = progress, whole_shards(folder, wanted)
            assert progress >= before
            if ended == 0:
                break
            hit += 1
        assert everything(folder) == wanted  # and nothing half written beside it
        done += 1


@pytest.mark.parametrize("kills", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_and_resumed_is_the_uninterrupted_one(children, straight, tmp_path, kills):
    kill_until(children, straight, tmp_path, kills, signal.SIGKILL, -signal.SIGKILL)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_resumably(children, tmp_path, number, code):
    folder = tmp_path / "a"
    child = children.start(folder, count=4000)
    while not (folder / "shard-00002.safetensors").exists():
        time.sleep(0.01)
    os.kill(child.pid, number)
    assert child.wait() == code
    left = Shards.open(folder, unfinished=True)
    assert not left.manifest["finished"] and len(left.manifest["shards"]) > 2
    assert [path.name for path in folder.glob(".tmp-*")] == []
    with pytest.raises(UserError, match="target_rows"):  # nothing holds the folder any more
        cache_toy(folder, count=4000, resume=True, tokens=7)


def test_the_second_writer_of_a_folder_is_refused_at_once_and_a_dead_one_leaves_no_lock(children, tmp_path):
    folder = tmp_path / "a"
    child = children.start(folder, count=4000)
    # A run killed before its first shard leaves nothing that a resumed one must agree with.
    while not (folder / "manifest.json").exists() or not Shards.open(folder, unfinished=True).manifest["shards"]:
        time.sleep(0.01)
    for resume in (False, True):
        with pytest.raises(UserError, match="another process is writing"):
            cache_toy(folder, count=4000, resume=resume)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    with pytest.raises(UserError, match="target_rows"):
        cache_toy(folder, resume=True, tokens=7, count=4000)


def test_of_two_writers_behind_a_url_the_first_stops():
    url = "memory://two-writers"
    rows = {"a": torch.ones(4, 4)}
    padded = pad_blocks([Block(torch.arange(4), 0)])
    options = (INFO, ["a"], torch.float32, 100, 8, 0)
    first = ShardWriter(url, *options, False)
    first.add(rows, padded)
    first.stop()
    first = ShardWriter(url, *options, True)
    second = ShardWriter(url, *options, True)
    first.add(rows, padded)
    with pytest.raises(UserError, match="only writer"):
        first.finish()
    first.close()
    second.add(rows, padded)
    second.finish()
    assert len(Shards.open(url)) == 8
    assert "owner" not in Shards.open(url).manifest


def test_a_file_that_cannot_grow_is_told_with_its_disk_and_costs_nothing(children, straight, tmp_path):
    folder = tmp_path / "a"
    child = children.start(folder, file_size=2048)
    assert child.wait() == FAILED
    assert str(folder) in child.said and "free on the disk" in child.said and "--resume" in child.said
    assert whole_shards(folder, straight[0]) == 0 and not list(folder.glob(".tmp-*"))
    assert children.start(folder, resume=True).wait() == 0
    assert everything(folder) == straight[0]


def test_a_disk_that_fills_in_the_middle_keeps_what_was_written(children, straight, tmp_path, monkeypatch):
    write, written = LocalFolder.write_tensors, []

    def fill(self, name, tensors):
        if len(written) == 5:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.path / name))
        written.append(name)
        return write(self, name, tensors)

    folder = tmp_path / "a"
    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "write_tensors", fill)
        with pytest.raises(UserError, match=r"No space left on device.*MiB free on the disk.*make room"):
            cache_toy(folder)
    assert whole_shards(folder, straight[0]) == 5
    assert children.start(folder, resume=True).wait() == 0
    assert everything(folder) == straight[0]


def test_a_full_disk_for_real(children, straight, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        child = children.start(disk / "a")
        assert child.wait() == FAILED
        assert "o space left" in child.said and "make room" in child.said
        whole_shards(disk / "a", straight[0])
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        assert children.start(disk / "a", resume=True).wait() == 0
        assert everything(disk / "a") == straight[0]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"expected to write to .*file/a.*check the path, its permissions"):
        cache_toy(tmp_path / "file" / "a")
    if os.geteuid():
        tmp_path.chmod(0o500)
        with pytest.raises(UserError, match="Permission denied"):
            cache_toy(tmp_path / "a")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [Path.unlink, truncated, flipped], ids=["missing", "truncated", "flipped"])
def test_a_damaged_shard_is_written_anew_when_an_unfinished_run_goes_on(
    children, straight, tmp_path, monkeypatch, caplog, damage
):
    folder = tmp_path / "a"
    flush = ShardWriter._flush

    def stop(self):
        if self._shard == 6:
            raise UserError("stop")
        flush(self)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="stop"):
        patch.setattr(ShardWriter, "_flush", stop)
        cache_toy(folder)
    damage(folder / "shard-00003.safetensors")
    with caplog.at_level(logging.WARNING):
        cache_toy(folder, resume=True)
    assert "shard-00003.safetensors is missing or damaged" in caplog.text
    assert everything(folder) == straight[0]


def test_a_finished_folder_whose_shard_is_missing_can_be_repaired(straight, tmp_path):
    folder = tmp_path / "a"
    cache_toy(folder)
    (folder / "shard-00002.safetensors").unlink()
    cache_toy(folder, resume=True)
    assert everything(folder) == straight[0]


def test_an_error_in_the_background_is_raised_where_rows_are_added(tmp_path):
    writer = ShardWriter(tmp_path / "a", INFO, ["a"], torch.float16, 1000, 8, 128, False)
    padded = pad_blocks([Block(torch.arange(4), 0)])
    writer.add({"a": torch.full((4, 4), 1e6)}, padded)
    with pytest.raises(UserError, match="fit float16"):
        for _ in range(100):
            writer.add({"a": torch.ones(4, 4)}, padded)
            time.sleep(0.01)
    with pytest.raises(UserError, match="fit float16"):
        writer.finish()
    writer.close()


def test_huge_but_finite_rows_are_kept(tmp_path):
    writer = ShardWriter(tmp_path / "a", INFO, ["a"], torch.bfloat16, 1000, 8, 128, False)
    writer.add({"a": torch.full((4, 4), 1e38)}, pad_blocks([Block(torch.arange(4), 0)]))
    writer.finish()
    shards = Shards.open(tmp_path / "a")
    assert shards["a"][:].isfinite().all() and (shards.norms("a") / 2e38).sub(1).abs().max() < 1e-6


def test_blocks_and_sites_are_those_of_the_toy(straight):
    assert len(straight[0]) > 12
    assert len(blocks()) == 60 and len(SITES) == 2
