"""Stores that are damaged, hostile, of another version or very large."""

import json
import time

import fakes
import pytest
import torch
from saes_toys import RESID, cached, dictionary, model
from safetensors.torch import load_file, save_file
from unweave.saes import FeatureStore, UserError, collect, intervals
from unweave.saes.io import write_json, write_tensors


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store of a toy's residual stream, its Shards and its dictionary; labels aside, read only."""
    folder = tmp_path_factory.mktemp("store")
    shards = cached(folder / "shards", (RESID,), count=40, longest=30)
    own = dictionary(latents=40, k=5, keep={"drop_positions": 1, "max_norm": {}})
    return collect(own, shards, folder / "store", model(), batch=64, progress=False), shards, own


@pytest.fixture
def copy(made, tmp_path):
    for path in made[0].folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("name", ["features.safetensors", "tokens.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "empty", "short", "cut header", "cut data", "huge header", "text"])
def test_damaged_files_are_a_user_error(copy, name, damage):
    path = copy / name
    data = path.read_bytes()
    path.unlink()
    contents = {"empty": b"", "short": data[:5], "cut header": data[:100], "cut data": data[:-50_000 if name[0] == "f" else -100],
                "huge header": b"\xff" * 8 + data[8:], "text": b"{}" * 500}  # fmt: skip
    if damage != "missing":
        path.write_bytes(contents[damage])
    with pytest.raises(UserError, match="FeatureStore file"):
        FeatureStore.open(copy)


@pytest.mark.parametrize("damage", ["no count", "shorter", "row beyond", "token beyond", "neighbour beyond"])
def test_arrays_that_do_not_fit_together_are_a_user_error(copy, damage):
    from safetensors.torch import load_file, save_file

    name = "tokens.safetensors" if damage == "token beyond" else "features.safetensors"
    arrays = load_file(copy / name)
    if damage == "no count":
        arrays.pop("count")
    elif damage == "shorter":
        arrays["histogram"] = arrays["histogram"][:-1].clone()
    else:
        which = {"row beyond": "example_rows", "token beyond": "tokens", "neighbour beyond": "neighbours"}[damage]
        arrays[which].view(-1)[3] = 10**6
    save_file(arrays, copy / name)
    with pytest.raises(UserError, match="do not fit together"):
        store = FeatureStore.open(copy)  # shapes are compared here, numbers where they are read
        for latent in range(len(store)):
            store[latent], store.neighbours(latent)


@pytest.mark.parametrize("change", [None, {"format": "other"}, {"version": 3}, []])
def test_a_wrong_manifest_is_a_user_error(copy, change):
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    path.unlink() if change is None else path.write_text(json.dumps({**manifest, **change} if change else change))
    with pytest.raises(UserError, match=r"FeatureStore|features"):
        FeatureStore.open(copy)


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


@pytest.mark.parametrize("kind", ["width", "count", "log"])
def test_the_fake_store_is_whole_enough_for_estimated_intervals(tmp_path, kind):
    """Its histogram counts every firing, among them the examples and samples, so that views of it can be tested."""
    store = fakes.store(tmp_path / "store")
    for latent in range(len(store)):
        feature = store[latent]
        assert len({place.row for place in feature.examples + feature.samples}) == (56 if feature.count else 0)
        found = intervals(store, latent, kind)
        assert sum(one.count for one in found) == feature.count == int(feature.histogram.counts.sum())
        assert sum(one.error == 0 for one in found) < len(found) or not found


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
