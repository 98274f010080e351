"""Shards of two models over the same tokens, read as one."""

import pytest
import torch
from saes_toys import shards_of
from torch.testing import assert_close
from unweave.saes import TrainConfig, UserError, evaluate, join_shards, train

SITE = "blocks.1.hook_resid_post"


@pytest.fixture
def pair(tmp_path):
    base = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    tuned = base * 2 + torch.randn(400, 8, generator=torch.Generator().manual_seed(1))
    return shards_of(tmp_path / "base", {SITE: base}), shards_of(tmp_path / "tuned", {SITE: tuned})


def test_rows_are_those_of_each(pair):
    both = join_shards({"base": pair[0], "tuned": pair[1]})
    assert both.sites == [f"base:{SITE}", f"tuned:{SITE}"] and len(both) == 400
    index = torch.tensor([7, 3, 399])
    read = both.read([f"tuned:{SITE}", f"base:{SITE}"], index)
    assert list(read) == [f"tuned:{SITE}", f"base:{SITE}"]
    for part, name in zip(pair, ("base", "tuned"), strict=True):
        assert_close(read[f"{name}:{SITE}"], part[SITE][index])
    assert both.fingerprint != join_shards({"base": pair[1], "tuned": pair[0]}).fingerprint
    batch = next(both.batches(10, seed=0))
    assert batch.activations[f"base:{SITE}"].shape == (10, 8)


def test_a_crosscoder_over_two_models_trains_resumes_and_is_measured(pair, tmp_path):
    both = join_shards({"base": pair[0], "tuned": pair[1]})
    config = TrainConfig(
        site=(f"base:{SITE}", f"tuned:{SITE}"), activation="batch_topk", latents=32, k=4, tokens=60 * 64, batch=64
    )
    crosscoder = train(config, both, tmp_path / "run", device="cpu", progress=False)
    assert crosscoder.decoders()[f"tuned:{SITE}"].shape == (32, 8)
    metrics = evaluate(crosscoder, both)
    assert 0 < metrics.fvu < 0.9
    with pytest.raises(UserError, match="cached site"):
        evaluate(crosscoder, pair[0])


@pytest.mark.parametrize("what", ["rows", "tokens"])
def test_rows_that_are_not_the_same_are_refused(what, pair, tmp_path):
    x = torch.randn(400 if what == "tokens" else 392, 8)
    other = shards_of(tmp_path / "other", {SITE: x}, seed=5)
    with pytest.raises(UserError, match="same rows"):
        join_shards({"base": pair[0], "other": other})


def test_names_are_needed(pair):
    for parts in ({"base": pair[0]}, {"a:b": pair[0], "c": pair[1]}, {}):
        with pytest.raises(UserError, match="two or more Shards"):
            join_shards(parts)
