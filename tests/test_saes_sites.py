"""Dictionaries of several sites downstream: features of a text, stores, loss effects, parts for tracing."""

import pytest
import torch
from saes_toys import MLP_IN, MLP_OUT, RESID, cached, model
from torch.testing import assert_close
from unweave.circuits import parts, trace
from unweave.saes import Dictionary, DictionaryConfig, UserError, collect, effects, features
from unweave.saes.dictionary import shapes_of
from unweave.saes.dictionary_config import ACTIVATIONS
from unweave.saes.latents.gather.weights import added
from unweave.saes.layout import Layout

LATENTS, K, WIDTH = 24, 4, 64
IN = tuple(f"blocks.{layer}.mlp.hook_in" for layer in range(3))
OUT = tuple(f"blocks.{layer}.mlp.hook_out" for layer in range(3))
KINDS = {
    "sae": dict(site=(RESID,)),
    "transcoder": dict(site=(MLP_IN,), site_out=(MLP_OUT,)),
    "cross-layer": dict(site=IN, site_out=OUT, across="cross_layer"),
    "crosscoder": dict(site=("blocks.0.hook_resid_post", RESID)),
}


def made(kind, rule="topk", seed=0):
    config = DictionaryConfig(latents=LATENTS, k=K, activation=rule, **KINDS[kind])
    layout = Layout(config, dict.fromkeys(config.site, WIDTH), dict.fromkeys(config.sites_out, WIDTH))
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes_of(layout).items()
    }
    if "threshold" in tensors:
        tensors["threshold"] = tensors["threshold"].abs()
    for block in layout.blocks:
        tensors["W_dec"][block.latents, : block.writes.start] = 0
    return Dictionary(config, tensors)


@pytest.mark.parametrize("rule", ACTIVATIONS)
@pytest.mark.parametrize("kind", ["sae", "transcoder", "cross-layer"])
def test_parts_encode_and_write_as_the_dictionary_does(kind, rule):
    dictionary = made(kind, rule)
    generator = torch.Generator().manual_seed(1)
    x = {site: torch.randn(30, WIDTH, generator=generator, dtype=torch.float64) for site in dictionary.config.site}
    codes = dictionary.encode(x).dense(LATENTS)
    found = parts(dictionary)
    assert [part.read for part in found] == list(dictionary.config.site)
    own = [part.encode(x[part.read]).dense(part.latents) for part in found]
    assert_close(torch.cat(own, 1), codes)
    expected = dictionary.layout.split(dictionary.decode_flat(dictionary.encode(x)), dictionary.layout.writes)
    for site, y in expected.items():
        written = sum(
            values @ part.W_dec[site] + part.b_dec.get(site, 0)
            for values, part in zip(own, found, strict=True)
            if site in part.W_dec
        )
        assert_close(written, y)


def test_a_shared_dictionary_is_a_part_a_site_and_a_crosscoder_none():
    config = DictionaryConfig(latents=LATENTS, k=K, site=("blocks.0.hook_resid_post", RESID), across="shared")
    layout = Layout(config, dict.fromkeys(config.site, WIDTH), dict.fromkeys(config.site, WIDTH))
    tensors = {
        name: torch.randn(shape, generator=torch.Generator().manual_seed(0))
        for name, shape in shapes_of(layout).items()
    }
    shared = Dictionary(config, tensors)
    assert [part.read for part in parts(shared)] == list(config.site)
    with pytest.raises(UserError, match="crosscoder read"):
        parts(made("crosscoder"))


def test_a_graph_of_a_cross_layer_dictionary_closes():
    graph = trace(model(), "w5 w6 w7", [made("cross-layer", "gated")], max_features=40)
    assert graph.residual < 1e-9


@pytest.mark.parametrize("rule", ["topk", "gated"])
@pytest.mark.parametrize("kind", KINDS)
def test_features_stores_and_effects(kind, rule, tmp_path):
    dictionary = made(kind, rule)
    table = features(model(), dictionary, "w5 w6 w7 w8")
    assert table and all(row.value > 0 for row in table)
    shards = cached(tmp_path / "shards", dictionary.sites)
    store = collect(dictionary, shards, tmp_path / "store", model(), progress=False)
    codes = dictionary.encode({site: shards[site][:] for site in dictionary.config.site}).dense(LATENTS)
    assert store.columns["count"].tolist() == (codes > 0).sum(0).tolist()
    latent = int(store.columns["count"].argmax())
    found = effects(store, latent, model(), dictionary)
    assert found


def test_what_residual_sites_add_is_what_the_last_holds():
    crosscoder, layers = made("crosscoder"), made("cross-layer")
    assert_close(added(crosscoder), crosscoder.decoders()[RESID])
    assert_close(added(layers), sum(layers.decoders().values()))
