"""Collecting: killed anywhere and gone on with, what the weights say, stores of other versions, hostile numbers, opening at once."""

import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import fakes
import pytest
import torch
from saes_toys import MLP_IN, MLP_OUT, RESID, cached, dictionary, model
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from unweave.saes import FeatureStore, UserError, collect
from unweave.saes.io import write_json, write_tensors
from unweave.saes.latents import partial, stats
from unweave.saes.latents.weights import weight_arrays

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


@pytest.mark.parametrize("codes_mib, step", [(64, 4), (0, 7)])
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


def test_direct_effects_are_binned_and_described():
    own = dictionary(latents=7, k=2, dtype=torch.float32)
    arrays = weight_arrays(own, model())
    gain = model().ln_final.weight.float()
    effect = (own.W_dec.double() * gain.double()) @ model().unembed.W_U.double()
    effect -= effect.mean(1, keepdim=True)
    assert_close(arrays["logit_range"], torch.stack(effect.aminmax(dim=1), 1).float(), rtol=1e-4, atol=1e-5)
    assert_close(arrays["logit_std"], effect.std(1, correction=0).float(), rtol=1e-4, atol=1e-5)
    kurtosis = effect.pow(4).mean(1) / effect.square().mean(1).square()
    assert_close(arrays["logit_kurtosis"], kurtosis.float(), rtol=1e-3, atol=1e-3)
    for latent in range(7):
        counts = torch.histc(effect[latent], 40)
        assert int(arrays["logit_histogram"][latent].sum()) == effect.shape[1]
        assert int((counts - arrays["logit_histogram"][latent]).abs().sum()) <= 2, "but for rounding at an edge"


def test_alignment_is_of_encoder_and_decoder():
    own = dictionary(latents=30, k=2)
    arrays = weight_arrays(own, model())
    for latent in (0, 29):
        enc, dec = own.W_enc[latent], own.W_dec[latent]
        assert arrays["encoder_cosine"][latent] == pytest.approx(float(enc @ dec / enc.norm() / dec.norm()), abs=1e-6)
        assert arrays["decoder_norm"][latent] == pytest.approx(float(dec.norm()), rel=1e-6)
    other = weight_arrays(dictionary(d=8, d_out=16, latents=5, site=MLP_IN, site_out=MLP_OUT), model())
    assert other["encoder_cosine"].isnan().all()
    assert "top_logit_tokens" not in other, "it writes at another width than the model's"


def test_neighbours_may_point_away_and_are_never_the_latent_itself():
    own = dictionary(latents=9, k=2, dtype=torch.float32)
    own.W_dec[1:4] = own.W_dec[0]
    own.W_dec[8] = -own.W_dec[0]
    own.W_dec[7] = 0
    arrays = weight_arrays(own, model())
    unit = torch.nn.functional.normalize(own.W_dec, dim=1)
    cosine = (unit @ unit.T).fill_diagonal_(-2)
    assert_close(arrays["neighbour_cosines"], cosine.sort(dim=1, descending=True).values[:, :8], rtol=1e-5, atol=1e-6)
    assert_close(arrays["neighbour_cosines"], cosine.gather(1, arrays["neighbours"].long()), rtol=1e-5, atol=1e-6)
    assert all(len(set(row)) == 8 for row in arrays["neighbours"].tolist())
    assert arrays["neighbour_cosines"].min() < -0.99


def test_a_latent_of_many_equal_ones_has_the_others_for_neighbours():
    own = dictionary(latents=14, k=2, dtype=torch.float32)
    own.W_dec[:12] = own.W_dec[0]
    near = weight_arrays(own, model())["neighbours"]
    for latent in range(12):
        assert set(near[latent].tolist()) <= set(range(12)) - {latent}
        assert len(set(near[latent].tolist())) == 8


def test_weights_that_are_not_numbers_are_shown_as_silent():
    own = dictionary(latents=5, k=2, dtype=torch.float32)
    own.W_dec[2, 3] = torch.nan
    arrays = weight_arrays(own, model())
    assert arrays["logit_histogram"].sum(1).tolist() == [model().cfg.d_vocab] * 5
    assert arrays["neighbour_cosines"].isfinite().all()


def test_a_store_of_version_1_opens(tmp_path):
    store = fakes.store(tmp_path / "new")
    arrays, shown = dict(store._arrays), store[6]
    windows = torch.zeros(64, 16, 32, dtype=torch.float16)
    for latent in range(64):
        for slot, example in enumerate(store[latent].examples):
            first = 20 - example.focus
            windows[latent, slot, first : first + len(example.values)] = torch.tensor(example.values).half()
    old = {name: arrays[name] for name in ("count", "density", "mean_value", "std_value", "max_value", "token_entropy",
           "context_entropy", "histogram", "example_values", "neighbours", "neighbour_cosines", "top_logit_tokens",
           "top_logit_values", "bottom_logit_tokens", "bottom_logit_values")}  # fmt: skip
    old |= {"example_rows": arrays["example_rows"].long(), "example_windows": windows}
    (tmp_path / "old").mkdir()
    write_tensors(tmp_path / "old" / "features.safetensors", old)
    (tmp_path / "old" / "tokens.safetensors").write_bytes((store.folder / "tokens.safetensors").read_bytes())
    write_json(tmp_path / "old" / "manifest.json", {**store.manifest, "version": 1})
    opened = FeatureStore.open(tmp_path / "old")
    feature = opened[6]
    assert [example._replace(values=[]) for example in feature.examples] == [
        example._replace(values=[]) for example in shown.examples
    ]
    assert feature.examples[3].values == pytest.approx(shown.examples[3].values, rel=1e-3)
    assert feature.top_logits == shown.top_logits
    assert (feature.samples, feature.tokens, feature.logit_histogram, feature.position_top) == ([], [], None, -1)
    assert opened.column_notes.keys() == opened.columns.keys()
    assert "encoder_cosine" not in opened.columns


EXTREMES = (-2, 2**31 - 1)


@pytest.mark.parametrize("name", ["features", "tokens"])
def test_numbers_that_cannot_be_are_a_user_error_and_nothing_worse(tmp_path, name):
    """Every array in turn is filled with extreme numbers: what is opened and read answers, or says that it is damaged."""
    store = fakes.store(tmp_path / "store", 12, codes=True)
    path = store.folder / f"{name}.safetensors"
    whole, refused = load_file(path), set()
    for array in whole:
        for extreme in EXTREMES:
            damaged = {key: tensor.clone() for key, tensor in whole.items()}
            is_float = damaged[array].is_floating_point()
            number = extreme % 256 if damaged[array].dtype == torch.uint8 else extreme
            damaged[array].view(-1)[1:].fill_(float("nan") if is_float else number)
            save_file(damaged, path)
            try:
                opened = FeatureStore.open(store.folder)
                repr(opened), opened.interesting(5)
                for latent in (1, 4):
                    opened[latent], opened.neighbours(latent), opened.example_at(latent, 100)
            except UserError as error:
                refused.add(array)
                assert str(store.folder) in str(error)
    pointing = {"example_rows", "sample_rows", "neighbours", "token_ids", "top_logit_tokens", "bottom_logit_tokens",
                "window_starts", "window_counts", "window_offsets"}  # fmt: skip
    pointing = pointing if name == "features" else {"tokens", "positions", "vocab_ends"}
    assert refused >= pointing


def test_a_position_before_the_text_is_a_user_error(tmp_path):
    store = fakes.store(tmp_path / "store", 12)
    store.positions[3] = 7
    with pytest.raises(UserError, match="position 7 of row 3"):
        store.example_at(1, 3)


@pytest.mark.parametrize("name", ["features", "tokens"])
def test_arrays_of_other_shapes_are_a_user_error_when_it_is_opened(tmp_path, name):
    store = fakes.store(tmp_path / "store", 12)
    path = store.folder / f"{name}.safetensors"
    whole = load_file(path)
    optional = {"encoder_cosine", "decoder_norm", "logit_std", "logit_kurtosis", "token_share", "distinct_tokens",
                "firing_entropy", "position_top", "position_share", "mean_position", "vocab_rows"}  # fmt: skip
    for array, tensor in whole.items():
        longer = torch.cat([tensor, tensor[:1]])
        for changed in (
            None,
            tensor[None].clone(),
            tensor.double() if not tensor.is_floating_point() else tensor.long(),
            longer,
        ):
            if changed is None and array in optional:
                continue
            if changed is longer and array in ("vocab_bytes", "vocab_ends", "vocab_rows"):
                continue
            save_file({key: value for key, value in {**whole, array: changed}.items() if value is not None}, path)
            with pytest.raises(UserError, match="do not fit together"):
                FeatureStore.open(store.folder)


@pytest.mark.parametrize("change", [{"before": None}, {"before": -1}, {"after": 10**9}, {"after": "x"}, {"before": 3}])
def test_a_manifest_of_other_windows_is_a_user_error(tmp_path, change):
    store = fakes.store(tmp_path / "store", 12)
    write_json(store.folder / "manifest.json", {**store.manifest, **change})
    with pytest.raises(UserError, match="do not fit together"):
        opened = FeatureStore.open(store.folder)
        [opened[latent] for latent in range(12)]


def test_a_store_of_131072_latents_opens_at_once(tmp_path):
    store = fakes.store(tmp_path / "small", 1024)
    arrays = {
        name: tensor.repeat(128, *[1] * (tensor.ndim - 1))
        for name, tensor in store._arrays.items()
        if name[:6] != "window"
    }
    counts = store._arrays["window_counts"].repeat(128, 1)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.sum(1, dtype=torch.int64).cumsum(0)])
    arrays |= {"window_counts": counts, "window_starts": starts}
    arrays |= {name: store._arrays[name].repeat(128) for name in ("window_offsets", "window_values")}
    big = tmp_path / "big"
    big.mkdir()
    for name in ("tokens.safetensors", "manifest.json"):
        (big / name).write_bytes((store.folder / name).read_bytes())
    write_tensors(big / "features.safetensors", arrays)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        opened = FeatureStore.open(big)
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.05
    assert len(opened) == 131_072
    assert opened[131_071].examples == store[1023].examples
    per_latent = (big / "features.safetensors").stat().st_size / 131_072
    assert 1000 < per_latent < 2100


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
