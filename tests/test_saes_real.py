"""Each stage on the bundled language model, with a small token budget."""

import math

import pytest
import torch
from unweave.saes import (
    FeatureStore,
    TrainConfig,
    UserError,
    bundled,
    cache,
    collect,
    evaluate,
    features,
    load_model,
    model_info,
    to_tokens,
    token_strings,
    train,
)
from unweave.saes.downstream import text_loss

SITES = ("blocks.8.hook_resid_post", "blocks.8.mlp.hook_in", "blocks.8.mlp.hook_out")
ENGLISH = (
    "The history of the city begins in the twelfth century, when a small market town grew beside the river crossing."
)


@pytest.fixture(scope="module")
def shards(smollm2, tmp_path_factory):
    texts = [document.text[:600] for document in bundled()[:20]]
    return cache(
        smollm2,
        texts,
        SITES,
        tmp_path_factory.mktemp("real") / "a",
        tokens=1500,
        dtype=torch.float32,
        context=64,
        progress=False,
    )


def test_the_model_is_a_language_model(smollm2):
    with torch.no_grad():
        p = smollm2(to_tokens(smollm2, "The capital of France is")[None])[0, -1].softmax(-1)
    assert token_strings(smollm2, p.argmax()[None]) == [" Paris"]
    assert p.max() > 0.7
    assert 1 < text_loss(smollm2, to_tokens(smollm2, ENGLISH)) < 4.5


def test_one_endoftext_stands_in_front(smollm2):
    assert model_info(smollm2).bos == 0
    assert to_tokens(smollm2, " Paris").tolist() == [0, 7042]
    assert token_strings(smollm2, torch.tensor([0])) == ["<|endoftext|>"]


def test_an_unknown_model_is_a_user_error():
    with pytest.raises(UserError, match="no-such-model"):
        load_model("no-such-model", device="cpu")


@pytest.mark.parametrize("written", [SITES[0], SITES[2]])
def test_from_text_to_features(smollm2, shards, tmp_path, written):
    assert len(shards) == 1500
    is_sae = written == SITES[0]
    sites = dict(site=SITES[0]) if is_sae else dict(site=SITES[1], site_out=SITES[2], skip=True)
    config = TrainConfig(**sites, latents=256, k=16, held_out=0.3, tokens=20 * 256, batch=256)
    own = train(config, shards, tmp_path / "run", device="cpu", progress=False)
    assert own.metadata["rows"]["dropped"] >= int((shards.positions == 0).sum())
    metrics = evaluate(own, shards, smollm2, ce_tokens=150, batch=4)
    assert metrics.documents == "held out"
    assert all(math.isfinite(value) for value in metrics.to_dict().values() if isinstance(value, float))
    assert 0 < metrics.fvu < 1.5
    assert 0 < metrics.linear_fvu
    assert 0 < metrics.l0 <= 16
    assert metrics.ce_clean < 5
    assert metrics.ce_zero > metrics.ce_clean
    assert metrics.kl > 0
    if is_sae:
        assert 0.01 < metrics.dropped_share < 0.1
        assert metrics.ce_zero > metrics.ce_reconstructed > metrics.ce_clean
        store = collect(own, shards, tmp_path / "store", smollm2, progress=False)
        assert FeatureStore.open(tmp_path / "store").count.sum() == store.count.sum() > 0
        best = store[int(store.count.argmax())]
        assert best.count > 0
        assert len(best.examples) > 4
        assert best.max_value == best.examples[0].value >= best.examples[-1].value > 0
        assert len(best.top_logits) == 10
        assert features(smollm2, own, "The capital of France is").latents()
