"""A collected store: what it shows of a dictionary and a text, where it says it comes from, labels."""

import inspect
import sqlite3
import threading

import numpy as np
import pytest
import torch
import toys
from saes_toys import MLP_IN, MLP_OUT, RESID, cached, dictionary, model
from torch.testing import assert_close
from unweave.saes import FeatureStore, Shards, UserError, collect


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


def test_the_store_shows_what_the_dictionary_does_on_the_text(made):
    store, shards, own = made
    dense = own.encode(shards[RESID][:]).dense(40).float()
    dense[shards.positions < 1] = 0
    assert len(store) == 40
    assert_close(store.count, (dense > 0).sum(0))
    assert_close(store.max_value, dense.amax(0), rtol=1e-6, atol=1e-6)
    assert_close(store.density, (dense > 0).sum(0) / (shards.positions >= 1).sum())
    feature = store[int(store.count.argmax())]
    assert len(feature.examples) == 16
    assert feature.count == int(feature.histogram.counts.sum())
    column = dense[:, feature.latent]
    for example in feature.examples:
        row = example.row
        first, last = row - min(20, int(shards.positions[row])), row
        while last + 1 < len(shards) and shards.positions[last + 1] > 0 and last < row + 11:
            last += 1
        assert example.tokens == ["<s>" if t == 0 else f"w{t}" for t in shards.tokens[first : last + 1].tolist()]
        assert example.values == pytest.approx(column[first : last + 1].tolist(), rel=1e-3, abs=1e-6)
        assert example.values[example.focus] == pytest.approx(example.value, rel=1e-3)
        assert example.value == pytest.approx(float(column[row]), rel=1e-6)
        assert (example.document, example.position) == (int(shards.documents[row]), int(shards.positions[row]))
    values = [example.value for example in feature.examples]
    assert values == sorted(values, reverse=True)


def test_the_store_says_where_it_comes_from(made):
    store, shards, own = made
    assert store.manifest["shards"] == shards.fingerprint
    place = {"site": RESID, "site_out": RESID, "folder": None}
    assert store.manifest["dictionary"] == {"fingerprint": own.fingerprint, **place}
    assert store.manifest["model"]["fingerprint"] == shards.manifest["model"]["fingerprint"]
    assert store.manifest["rows"] == len(shards)
    assert store.manifest["kept_rows"] == int((shards.positions >= 1).sum())
    assert store.manifest["codes"]["kept"] and store.manifest["seed"] == 0
    assert store.manifest["text"] == {"names": [], "more_names": False, "documents": 40}, "texts in memory have no name"
    assert set(store.columns) >= {"count", "density", "max_value", "mean_value", "token_entropy", "context_entropy"}
    assert all(len(column) == 40 for column in store.columns.values())


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_promoted_tokens_are_the_direct_path_through_the_final_gain(tmp_path, name):
    own, shards = dictionary(latents=9, k=3), cached(tmp_path / "shards", name=name, count=3)
    store = collect(own, shards, tmp_path / "store", model(name), progress=False)
    hf = model(name).original_model
    norm = next(
        module for path, module in hf.named_modules() if path in ("transformer.ln_f", "model.norm") or path == "ln_f"
    )
    gain = getattr(norm, "weight", None)
    gain = (norm.original_component if gain is None else norm).weight
    W_dec = own.W_dec - own.W_dec.mean(1, keepdim=True) if name == "gpt2" else own.W_dec  # its final norm centres
    effect = (W_dec * (gain + (1 if name == "gemma2" else 0))) @ model(name).unembed.W_U
    effect = effect - effect.mean(1, keepdim=True)
    for latent in range(9):
        for sign, found in ((1, store[latent].top_logits), (-1, store[latent].bottom_logits)):
            order = (sign * effect[latent]).argsort(descending=True)[:10].tolist()
            names = {0: "<s>", 1: "</s>", 2: "<unk>"}
            assert [token for token, _ in found] == [names.get(token, f"w{token}") for token in order]
            assert [value for _, value in found] == pytest.approx(effect[latent, order].tolist(), rel=1e-4, abs=1e-5)


def test_neighbours_are_the_nearest_decoder_rows(made):
    store, _, own = made
    unit = torch.nn.functional.normalize(own.W_dec, dim=1)
    cosine = unit @ unit.T - 3 * torch.eye(40)
    best = cosine[7].topk(3)
    assert [latent for latent, _ in store.neighbours(7, 3)] == best.indices.tolist()
    assert [value for _, value in store.neighbours(7, 3)] == pytest.approx(best.values.tolist(), rel=1e-5)
    assert len(store.neighbours(7)) == 8


def test_interesting_latents_meet_the_stated_statistic(made):
    store = made[0]
    store = FeatureStore.open(store.folder)
    arrays = dict(store._arrays)
    arrays["density"] = torch.full((40,), 1e-3)
    arrays["density"][10:] = 0.5
    arrays["example_rows"] = arrays["example_rows"].clone().clamp_min(0)
    arrays["example_rows"][0, -1] = -1
    store._arrays = arrays
    bits = torch.arange(40.0)
    bits[2:10] = torch.tensor([5.0, 2.0, 0.2, 2.5, 0.1, 9.0, 9.0, 9.0])
    arrays["density"][5] = 5e-3
    store.columns = {**store.columns, "density": arrays["density"], "token_entropy": bits}
    store.columns["context_entropy"] = torch.full((40,), 3.5)
    store.columns["context_entropy"][1] = 1.0
    assert store.interesting(4) == [4, 6, 3, 5], "one token first, then families, densities nearest 1e-3 first"
    assert store.interesting(6)[4:] == [2, 7], "the rest follows where these are too few"
    assert sorted(store.interesting(100)) == list(range(2, 10))
    assert store.interesting(0) == []


def test_labels_persist_and_replace(copy):
    store = FeatureStore.open(copy)
    assert store.label(3) is None
    assert not (copy / "labels.sqlite").exists()
    store.set_label(3, "first")
    store.set_label(3, "Zürich <b>'; DROP TABLE labels; --")
    store.set_label(0, "zero")
    again = FeatureStore.open(copy)
    assert again[3].label == again.label(3) == "Zürich <b>'; DROP TABLE labels; --"
    assert again.label(0) == "zero"
    assert again.label(4) is None
    with pytest.raises(IndexError):
        store.set_label(40, "beyond")


def test_labels_may_be_set_from_many_threads(copy):
    store, failed = FeatureStore.open(copy), []

    def work(number):
        try:
            for latent in range(number, 40, 4):
                store.set_label(latent, f"label {latent}")
                assert store.label(latent) == f"label {latent}"
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert [store.label(i) for i in range(40)] == [f"label {i}" for i in range(40)]


def test_a_damaged_labels_file_is_a_user_error(copy):
    (copy / "labels.sqlite").write_bytes(b"not a database, but long enough to be read as one" * 40)
    with pytest.raises(UserError, match=r"labels\.sqlite"):
        FeatureStore.open(copy).label(3)
    (copy / "labels.sqlite").unlink()
    with sqlite3.connect(copy / "labels.sqlite") as database:
        database.execute("CREATE TABLE labels (other INTEGER)")
    database.close()
    with pytest.raises(UserError, match=r"labels\.sqlite"):
        FeatureStore.open(copy).set_label(3, "x")


def test_a_latent_that_is_not_there_is_an_index_error(made):
    for latent in (-1, 40):
        for ask in (made[0].__getitem__, made[0].neighbours, lambda latent: made[0].example_at(latent, 3)):
            with pytest.raises(IndexError, match=r"latent in \[0, 40\)"):
                ask(latent)


@pytest.mark.parametrize("latent", ["density", 1.5, None, [3]])
def test_a_latent_that_is_no_number_is_an_error_that_says_so(made, latent):
    ask = inspect.unwrap(FeatureStore.__getitem__)  # without the check of annotations, which only tests have
    with pytest.raises(TypeError, match=r"expected the number of a latent; got .*`columns` has"):
        ask(made[0], latent)


def test_any_integer_names_a_latent(made):
    numbers = [3, torch.tensor(3), np.int64(3), made[0].count.new_tensor([3])[0]]
    assert {made[0][number].count for number in numbers} == {int(made[0].count[3])}
    assert {type(made[0][number].latent) for number in numbers} == {int}


@pytest.mark.parametrize("token", [-1, toys.VOCAB])
def test_a_token_that_the_model_has_not_is_a_user_error_before_anything_is_written(made, tmp_path, token):
    _, shards, own = made
    changed = Shards.open(shards.folder)
    changed.__dict__["tokens"] = shards.tokens.clone()
    changed.tokens[7] = token
    with pytest.raises(UserError, match=rf"ids below {toys.VOCAB} .* got {token}; cache the text anew"):
        collect(own, changed, tmp_path / "store", model(), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_collect_refuses_what_does_not_belong_together(made, tmp_path):
    store, shards, own = made
    with pytest.raises(UserError, match="has files"):
        collect(own, shards, store.folder, model(), progress=False)
    with pytest.raises(UserError, match="weights"):
        collect(own, shards, tmp_path / "a", toys.boot("gpt2", seed=3), progress=False)
    with pytest.raises(UserError, match="cached site"):
        collect(dictionary(site=MLP_IN, site_out=MLP_OUT), shards, tmp_path / "b", model(), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_dictionary_of_one_latent_can_be_collected(made, tmp_path):
    store = collect(dictionary(latents=1, k=1), made[1], tmp_path / "one", model(), progress=False)
    assert store.neighbours(0) == []
    assert len(store[0].examples) == 16
