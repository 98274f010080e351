"""Collecting: killed anywhere and gone on with, limits, what nothing fires on."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from saes_toys import RESID, cached, dictionary, model
from safetensors.torch import save_file
from unweave.saes import FeatureStore, UserError, collect
from unweave.saes.io import write_json
from unweave.saes.latents.gather import partial, stats

KEEP = {"drop_positions": 1, "max_norm": {}}

# A process that loads the model once and forks: each child collects and is killed, or ends, and the files are compared.
KILLED = r"""
import hashlib, os, signal, sys, time
from pathlib import Path
import torch
from saes_toys import RESID, cached, dictionary, model
from unweave.saes import collect
torch.set_num_threads(1)
os.fsync = lambda handle: None  # what a killed process wrote is there all the same; only a power cut loses it
root = Path(sys.argv[1])
shards = cached(root / "shards", (RESID,), count=40, longest=30)
own = dictionary(latents=40, k=5, keep={"drop_positions": 1, "max_norm": {}})
events = 0

def counted(method, fatal):
    def wrapped(path, *arguments, **options):
        global events
        events += 1
        if events == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(path, *arguments, **options)
    return wrapped

def child(folder, fatal=0, after=None):
    pid = os.fork()
    if pid:
        if after is not None:
            time.sleep(after)
            os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    for name in ("replace", "unlink", "chmod"):  # before and after each rename and removal, thus each state of the folder
        setattr(Path, name, counted(getattr(Path, name), fatal))
    try:
        collect(own, shards, folder, model(), batch=64, checkpoint_every=250, codes_mib=int(sys.argv[2]), progress=False)
        (root / "events").write_text(str(events))
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(1)
    os._exit(0)

def files(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}

def is_finished(folder):
    return (folder / "manifest.json").exists() and not (folder / "unfinished.json").exists()

start = time.perf_counter()
assert child(root / "whole") == 0
wall = time.perf_counter() - start
whole, total = files(root / "whole"), int((root / "events").read_text())
assert total > 30, total
for fatal in range(1, total + 1, int(sys.argv[3])):
    folder = root / f"killed-{fatal}"
    assert child(folder, fatal) == -9, fatal
    assert child(folder) == 0, fatal
    assert files(folder) == whole, (fatal, files(folder), whole)
folder, times = root / "often", 0
while (code := child(folder, 10 * times + 5)) != 0:  # killed again and again, each time a little later
    assert code == -9, (code, times)
    times += 1
assert times > 2 and files(folder) == whole, times
for number in range(5):
    folder = root / f"timed-{number}"
    if child(folder, after=wall * (number + 0.5) / 6) == -9 and not is_finished(folder):
        assert child(folder) == 0
    assert files(folder) == whole, number
print("same", total, times)
"""


@pytest.mark.parametrize("codes_mib, step", [(64, 6), (0, 12)])
def test_killed_anywhere_it_goes_on_to_the_same_bytes(tmp_path, codes_mib, step):
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(Path(__file__).parent))
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(codes_mib), str(step)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.startswith("same")


class Stopped(Exception):
    pass


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """An unfinished store, its Shards and its dictionary."""
    shards, own = cached(tmp_path / "shards", count=20), dictionary(latents=20, k=3, keep=KEEP)
    update = stats.FeatureStats.update

    def stopping(self, codes, positions, first_row, *rest):
        if first_row > 100:
            raise Stopped
        update(self, codes, positions, first_row, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(stats.FeatureStats, "update", stopping)
        with pytest.raises(Stopped):
            collect(own, shards, tmp_path / "store", model(), batch=40, checkpoint_every=50, progress=False)
    return tmp_path / "store", shards, own


def go_on(begun, **options):
    folder, shards, own = begun
    return collect(own, shards, folder, model(), **{"batch": 40, "checkpoint_every": 50, "progress": False, **options})


def test_an_unfinished_store_says_so(begun):
    with pytest.raises(UserError, match="unweave collect"):
        FeatureStore.open(begun[0])


def test_going_on_skips_what_is_done(begun, monkeypatch):
    rows, update = [], stats.FeatureStats.update
    monkeypatch.setattr(
        stats.FeatureStats, "update", lambda self, *given: (rows.append(given[2]), update(self, *given))
    )
    assert len(go_on(begun)) == 20
    assert min(rows) > 50


def test_going_on_with_other_settings_is_a_user_error(begun):
    for changed in ({"seed": 1}, {"batch": 41}, {"codes_mib": 3}, {"checkpoint_every": 60}):
        with pytest.raises(UserError, match=f"{next(iter(changed))} .* instead of"):
            go_on(begun, **changed)
    folder, shards, _ = begun
    with pytest.raises(UserError, match=r"dictionary .* instead of"):
        collect(
            dictionary(latents=20, k=3, seed=1), shards, folder, model(), batch=40, checkpoint_every=50, progress=False
        )
    assert len(go_on(begun, seed=1, resume=False)) == 20, "it may begin anew"
    assert FeatureStore.open(folder).manifest["seed"] == 1


def test_going_on_under_another_version_warns(begun):
    settings = json.loads((begun[0] / partial.SETTINGS).read_text())
    settings["versions"]["torch"] = "1.0"
    write_json(begun[0] / partial.SETTINGS, settings)
    with pytest.warns(UserWarning, match="last bits"):
        go_on(begun)


@pytest.mark.parametrize("damage", ["other file", "cut", "other arrays", "settings"])
def test_a_damaged_unfinished_store_is_a_user_error(begun, damage):
    folder = begun[0]
    if damage == "cut":
        (folder / partial.STATE).write_bytes((folder / partial.STATE).read_bytes()[:-9])
    elif damage == "other arrays":
        save_file({"count": torch.zeros(3)}, folder / partial.STATE)
    elif damage == "settings":
        (folder / partial.SETTINGS).write_text("{")
    else:
        (folder / partial.SETTINGS).rename(folder / "mine.json")
    with pytest.raises(UserError, match="FeatureStore"):
        go_on(begun)


def test_codes_beyond_the_limit_are_not_kept(begun):
    with pytest.raises(UserError, match="batch"):
        go_on(begun, batch=0)
    store = go_on(begun, codes_mib=0, resume=False)
    assert store.codebook is None
    assert store.manifest["codes"] == {"kept": False, "slots": int(store.count.sum()), "bytes": 0}
    assert sorted(path.name for path in store.folder.iterdir() if "safetensors" in path.name) == [
        "features.safetensors",
        "tokens.safetensors",
    ]


def test_an_example_can_be_shown_at_any_row(begun):
    store, (_, shards, own) = go_on(begun), begun
    dense = own.encode(shards[RESID][:]).dense(20).float()
    dense[shards.positions < 1] = 0
    latent = int(store.count.argmax())
    for row in (0, 1, 57, len(shards) - 1):
        example = store.example_at(latent, row)
        start = row - example.focus
        assert int(shards.positions[row]) >= example.focus
        assert example.values == pytest.approx(dense[start : start + len(example.tokens), latent].tolist(), rel=1e-6)
        assert example.tokens == [
            store.vocabulary[token] for token in shards.tokens[start : start + len(example.tokens)]
        ]
        given = store.example_at(latent, row, torch.arange(32.0), bin=3)
        assert (given.value, given.bin, given.values[given.focus]) == (20.0, 3, 20.0)
        assert given.tokens == example.tokens
    for sample in store[latent].samples:
        assert store.example_at(latent, sample.row).values == pytest.approx(sample.values, rel=1e-3, abs=1e-7)
    with pytest.raises(UserError, match="row"):
        store.example_at(latent, len(shards))
    with pytest.raises(ValueError, match="32"):
        store.example_at(latent, 3, torch.zeros(4))


def test_samples_and_shares_are_of_the_text(begun):
    store, (_, shards, _) = go_on(begun), begun
    feature = store[int(store.count.argmax())]
    assert len({example.row for example in feature.samples}) == len(feature.samples) > 6
    edges = feature.histogram.edges
    assert all(edges[sample.bin] <= sample.value < edges[sample.bin + 1] for sample in feature.samples)
    assert all(example.bin == -1 for example in feature.examples)
    share = feature.tokens[0]
    firings = store.codebook.firings(feature.latent).rows
    same = [row for row in firings.tolist() if store.vocabulary[shards.tokens[row]] == share.token]
    assert share.count == len(same)
    assert share.share == pytest.approx(len(same) / feature.count)
    assert store.manifest["token_error"] == 0


def test_a_text_of_which_nothing_is_kept_can_be_collected(tmp_path):
    shards = cached(tmp_path / "shards", count=3)
    own = dictionary(latents=6, k=2, keep={"drop_positions": 1000, "max_norm": {}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store = collect(own, shards, tmp_path / "store", model(), progress=False)
    assert store.manifest["kept_rows"] == 0
    for latent in range(6):
        feature = store[latent]
        assert (feature.count, feature.examples, feature.samples, feature.tokens) == (0, [], [], [])
        assert feature.position_top == -1
    assert store.codebook.slots == 0
