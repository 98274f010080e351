"""Folders on disks and behind URLs: whole or absent, never outside themselves, copies in bounded room."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import pytest
import torch
from saes_toys import MLP_OUT, RESID, cached
from saes_urls import PLACES, damage, new_place, s3_bucket  # noqa: F401
from torch.testing import assert_close
from unweave.saes import Shards, UserError, cli
from unweave.saes.io import read_tensors
from unweave.saes.shards import storage
from unweave.saes.shards.copies import Copies, remove_abandoned
from unweave.saes.shards.remote import RemoteFolder
from unweave.saes.shards.storage import open_folder
from unweave.viz import commands


@pytest.fixture(params=PLACES)
def address(request, tmp_path) -> str:
    return new_place(request.param, tmp_path, request)


def test_what_is_written_is_listed_and_read_back(address):
    folder = open_folder(address)
    assert folder.names() == [] and not folder.exists("a.json")
    folder.write_json("a.json", {"text": "ö"})
    x = torch.arange(12.0).view(3, 4)
    path = folder.write_tensors("x.safetensors", {"x": x})
    assert (path is None) == (folder.local is None)
    again = open_folder(address)
    assert again.names() == ["a.json", "x.safetensors"]
    assert again.exists("a.json") and not again.exists("b.json")
    assert again.read_json("a.json", "a thing") == {"text": "ö"}
    assert_close(read_tensors(again.fetch("x.safetensors"), "x")["x"], x)
    assert again.size("x.safetensors") == again.sizes()["x.safetensors"] == again.fetch("x.safetensors").stat().st_size
    again.write_json("a.json", {"text": "new"})
    assert folder.read_json("a.json", "a thing") == {"text": "new"}
    again.remove("a.json")
    again.remove("a.json")
    assert folder.names() == ["x.safetensors"]


def test_a_file_that_is_not_there_says_so(address):
    folder = open_folder(address)
    with pytest.raises(FileNotFoundError):
        folder.size("x")
    with pytest.raises(FileNotFoundError):
        folder.fetch("x").stat()
    with pytest.raises(UserError, match=r"expected a thing at .*x\.json"):
        folder.read_json("x.json", "a thing")
    folder.write_json("x.json", {})
    damage(f"{address}/x.json", lambda _: b"[1]")
    with pytest.raises(UserError, match="not an object"):
        folder.read_json("x.json", "a thing")


@pytest.mark.parametrize("name", ["../x", "/etc/hostname", "a/b", "", ".", "..", "a\\b", "a\0b"])
@pytest.mark.parametrize("kind", ["path", "memory"])
def test_names_never_lead_out_of_the_folder(kind, name, tmp_path, request):
    folder = open_folder(new_place(kind, tmp_path, request))
    attempts = [
        lambda: folder.exists(name), lambda: folder.size(name), lambda: folder.fetch(name), lambda: folder.remove(name),
        lambda: folder.read_json(name, "a thing"),
        lambda: folder.write_json(name, {}), lambda: folder.write_tensors(name, {"x": torch.ones(1)}),
    ]  # fmt: skip
    for attempt in attempts:
        with pytest.raises(UserError, match="name of a file in the folder"):
            attempt()


def test_an_upload_that_fails_leaves_the_old_file_and_no_copy(tmp_path, request, monkeypatch):
    folder = open_folder(new_place("memory", tmp_path, request))
    folder.write_tensors("x", {"x": torch.zeros(4)})
    whole = type(folder._files).put_file
    monkeypatch.setattr(type(folder._files), "put_file", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("cut off")))
    with pytest.raises(OSError, match=r"could not reach .*/x: RuntimeError: cut off"):
        folder.write_tensors("x", {"x": torch.ones(4)})
    assert not folder.has_copy("x")
    monkeypatch.setattr(type(folder._files), "put_file", whole)
    assert_close(read_tensors(folder.fetch("x"), "x")["x"], torch.zeros(4))


def test_where_objects_grow_in_sight_an_upload_is_renamed_when_it_is_whole(tmp_path, request, monkeypatch):
    folder = open_folder(new_place("memory", tmp_path, request))
    monkeypatch.setattr(folder, "_is_whole", False)
    seen = []
    put = type(folder._files).put_file

    def watched(files, local, address, **options):
        put(files, local, address, **options)
        seen.append((address.rpartition("/")[2], folder.names()))

    monkeypatch.setattr(type(folder._files), "put_file", watched)
    folder.write_tensors("x", {"x": torch.zeros(4)})
    assert seen == [(f".tmp-{os.getpid()}-x", [])]
    assert folder.names() == ["x"]


def test_a_download_that_is_cut_short_is_an_error_and_leaves_no_copy(tmp_path, request, monkeypatch):
    address = new_place("memory", tmp_path, request)
    open_folder(address).write_tensors("x", {"x": torch.zeros(4)})
    folder = open_folder(address, Copies(2**20))
    monkeypatch.setattr(type(folder._files), "get_file", lambda files, there, here: Path(here).write_bytes(b"short"))
    with pytest.raises(OSError, match=r"5 of \d+ bytes arrived"):
        folder.fetch("x")
    assert not folder.has_copy("x")


def test_a_server_that_refuses_is_named(s3_bucket):  # noqa: F811
    with pytest.raises(UserError, match="could not read it"):
        Shards.open(s3_bucket.replace("bucket", "no-such-bucket") + "/x")


@pytest.mark.parametrize("address, says", [("gs://a/b", "gcsfs"), ("zzz://a/b", "not known: zzz")])
def test_a_protocol_that_is_not_here_is_a_user_error(address, says):
    if address.startswith("gs"):
        try:
            import gcsfs  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("gcsfs is installed")
    with pytest.raises(UserError, match=says):
        open_folder(address)


def test_messages_do_not_tell_passwords():
    assert str(open_folder("memory://me:secret@there/x")) == "memory://there/x"


def files_of(copies: Copies) -> int:
    total = 0
    for path in copies.folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # it goes while another thread reads
            total += path.stat().st_size
    return total


def made(size: int):
    return lambda: size, lambda path, size: path.write_bytes(b"x" * size)


def test_copies_stay_within_the_limit_and_the_one_used_longest_ago_goes():
    copies = Copies(25)
    for name in "ab":
        copies.get(name, *made(10))
    copies.get("a", *made(10))
    copies.get("c", *made(10))
    assert [name for name in "abc" if copies.holds(name)] == ["a", "c"]
    assert files_of(copies) == 20
    copies.get("d", *made(100))
    assert [name for name in "abcd" if copies.holds(name)] == ["d"]
    copies.drop("d")
    assert files_of(copies) == 0


def test_threads_that_want_the_same_copy_make_it_once():
    copies, calls = Copies(100), []

    def slow(path, size):
        calls.append(path)
        time.sleep(0.05)
        path.write_bytes(b"x")

    threads = [threading.Thread(target=copies.get, args=("a", lambda: 1, slow)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


COPYING = """
import sys, time
from unweave.saes.shards.copies import Copies
copies = Copies(100)
copies.get("a", lambda: 1, lambda path, size: path.write_bytes(b"x"))
print(copies.folder, flush=True)
if sys.argv[1:]:
    time.sleep(60)
"""


def test_copies_are_removed_when_the_process_ends_and_a_killed_ones_by_the_next(tmp_path):
    surroundings = {**os.environ, "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-P", "-c", COPYING], env=surroundings, check=True, capture_output=True)
    assert not list(tmp_path.iterdir())
    with subprocess.Popen(
        [sys.executable, "-P", "-c", COPYING, "wait"], env=surroundings, stdout=subprocess.PIPE, text=True
    ) as other:
        folder = Path(other.stdout.readline().strip())
        remove_abandoned(tmp_path)
        assert folder.is_dir(), "it is still used"
        other.send_signal(signal.SIGKILL)
    assert folder.is_dir()
    remove_abandoned(tmp_path)
    assert not folder.exists()


@pytest.mark.parametrize("given", ["0", "-1", "many", "inf", "nan"])
def test_a_senseless_limit_is_a_user_error(given, monkeypatch):
    monkeypatch.setenv("UNWEAVE_COPIES_GIB", given)
    with pytest.raises(UserError, match="UNWEAVE_COPIES_GIB"):
        storage.limit_from_environment()


def rows_of(batches):
    return [(batch.documents * 1000 + batch.positions).tolist() for batch in batches]


def test_shards_anywhere_are_those_of_a_local_folder(address, tmp_path):
    here = cached(tmp_path / "here", (RESID, MLP_OUT), shard_mib=0)
    there = cached(address, (RESID, MLP_OUT), shard_mib=0)
    assert there.fingerprint == here.fingerprint and len(here.manifest["shards"]) > 2
    opened = Shards.open(address)
    assert_close(opened.tokens, here.tokens)
    for site in here.sites:
        assert_close(opened[site][:], here[site][:], rtol=0, atol=0)
        assert_close(opened.norms(site), here.norms(site), rtol=0, atol=0)
    for window in (0, 2):
        assert rows_of(opened.batches(9, window=window)) == rows_of(here.batches(9, window=window))


@pytest.mark.parametrize("kind", ["memory", "s3"])
@pytest.mark.parametrize("harm", ["flipped", "truncated", "missing"])
def test_a_damaged_remote_shard_is_a_user_error_that_names_it(kind, harm, tmp_path, request, monkeypatch):
    address = new_place(kind, tmp_path, request)
    cached(address, shard_mib=0)
    change = {
        "flipped": lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
        "truncated": lambda data: data[:-1],
        "missing": lambda data: None,
    }[harm]
    kept = Copies(2**20)
    monkeypatch.setattr(storage, "all_copies", lambda: kept)  # not the copies that the writer left
    damage(f"{address}/shard-00001.safetensors", change)
    with pytest.raises(UserError, match=rf"{address}/shard-00001\.safetensors"):
        Shards.open(address)[RESID][:]


def test_a_remote_folder_larger_than_the_room_is_read_by_windows(tmp_path, request, monkeypatch):
    address = new_place("memory", tmp_path, request)
    here = cached(tmp_path / "here", shard_mib=0, count=40)
    cached(address, shard_mib=0, count=40)
    largest = max(entry["bytes"] for entry in here.manifest["shards"])
    assert len(here.manifest["shards"]) > 8
    copies = Copies(5 * largest)
    monkeypatch.setattr(storage, "all_copies", lambda: copies)
    shards = Shards.open(address)
    with pytest.raises(UserError, match="smaller window"):
        shards.batches(16)
    with pytest.raises(UserError, match="smaller window"):
        shards.batches(16, window=6)
    for window in (2, 4):
        for mine, theirs in zip(shards.batches(16, window=window), here.batches(16, window=window), strict=True):
            assert_close(mine, theirs, rtol=0, atol=0)
            assert files_of(copies) <= copies.limit
    assert rows_of(shards.batches(16, None)) == rows_of(here.batches(16, None))
    assert files_of(copies) <= copies.limit
    assert_close(shards[RESID][:], here[RESID][:], rtol=0, atol=0)
    everywhere = torch.randperm(len(here), generator=torch.Generator().manual_seed(0))
    assert_close(shards[RESID][everywhere], here[RESID][everywhere], rtol=0, atol=0)
    assert_close(shards[RESID][everywhere], here[RESID][everywhere], rtol=0, atol=0)


def test_commands_take_a_url_as_it_is(tmp_path, request, capsys):
    address = new_place("memory", tmp_path, request)
    cached(address, count=30)
    flags = "--latents 8 --k 2 --tokens 64 --batch 32 --device cpu --activation topk".split()
    assert cli.parse_and_run(cli.sae_train, [address, "--out", str(tmp_path / "run"), *flags], "sae-train") == 0
    found = commands.evaluate(tmp_path / "run", address)
    assert found["l0"] > 0
    elsewhere = [str(tmp_path / "run"), "--activations", address + "-absent"]
    assert cli.parse_and_run(commands.evaluate, elsewhere, "unweave eval") == 2
    assert f"manifest of a Shards folder at {address}-absent/manifest.json" in capsys.readouterr().err


def test_a_url_is_told_from_a_path():
    assert isinstance(open_folder("memory://x"), RemoteFolder)
    for path in ("a/b", "/a/b", "./a:b", "C:b", Path("memory:/x")):
        assert open_folder(path).local == Path(path)
    assert open_folder("file:///a/b").local == Path("/a/b")


def test_others_writes_are_seen_at_once(s3_bucket):  # noqa: F811
    folder = open_folder(f"{s3_bucket}/seen")
    assert folder.names() == []
    files, path = fsspec.url_to_fs(f"{s3_bucket}/seen/x")
    files.pipe_file(path, b"123")
    assert folder.sizes() == {"x": 3} and folder.exists("x")
