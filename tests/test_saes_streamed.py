"""Activations straight from the model are those that a cache would hold, and one forward pass feeds all runs."""

import torch
from saes_toys import MLP_IN, MLP_OUT, RESID, cached, model, texts
from torch.testing import assert_close
from unweave.saes import TrainConfig, evaluate, grid, stream, train, train_many
from unweave.saes.cache import capture

SITES = (RESID, MLP_IN, MLP_OUT)
BASE = TrainConfig(site=RESID, latents=48, k=4, batch=64, tokens=64 * 12)


def made(**options):
    return stream(model(), texts(30), SITES, context=16, batch=4, **options)


def test_rows_are_those_of_a_cache(tmp_path):
    shards = cached(tmp_path / "shards", SITES, count=30)
    batches = list(made())
    for site in SITES:
        assert_close(torch.cat([batch.activations[site] for batch in batches]), shards[site][:], rtol=1e-9, atol=1e-9)
    for what in ("tokens", "positions", "documents"):
        assert torch.cat([getattr(batch, what) for batch in batches]).tolist() == getattr(shards, what).tolist()


def test_training_knows_positions_and_the_model(tmp_path):
    dictionary = train(BASE, made(), device="cpu", progress=False)
    assert dictionary.keep_rule.drop_positions == 1
    shards = cached(tmp_path / "shards", SITES, count=30)
    assert dictionary.metadata["model"]["fingerprint"] == shards.manifest["model"]["fingerprint"]
    assert evaluate(dictionary, shards).fvu < 1


def test_one_forward_pass_feeds_a_sweep(monkeypatch):
    passes = []
    monkeypatch.setattr("unweave.saes.streamed.capture", lambda *given: passes.append(1) or capture(*given))
    configs = [*grid(BASE, k=[2, 4]), *grid(BASE, site=[(MLP_IN,)], site_out=[(MLP_OUT,)], activation=["topk", "relu"])]
    many = train_many(configs, made(), device="cpu", progress=False)
    fed = len(passes)
    passes.clear()
    assert fed <= len(list(made())) == len(passes)
    for config, found in zip(configs, many, strict=True):
        alone = train(config, made(), device="cpu", progress=False)
        assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), found.parameters(), strict=True))
        assert found.metadata == alone.metadata and "model" in found.metadata
