"""Fine-tuning by the model's own loss: less divergence than by reconstruction alone, and nothing else is touched."""

import pytest
import torch
from saes_toys import MLP_IN, MLP_OUT, RESID, cached, model, texts
from torch.testing import assert_close
from unweave.saes import TrainConfig, UserError, finetune, train
from unweave.saes.finetune import batches, losses
from unweave.saes.text import token_blocks

KINDS = {
    "sae": dict(site=RESID),
    "skip": dict(site=MLP_IN, site_out=MLP_OUT, skip=True),
    "cross-layer": dict(
        site=tuple(f"blocks.{n}.mlp.hook_in" for n in (0, 1)),
        site_out=tuple(f"blocks.{n}.mlp.hook_out" for n in (0, 1)),
        across="cross_layer",
    ),
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    given = [kind.get(field, ()) for kind in KINDS.values() for field in ("site", "site_out")]
    sites = sorted({site for some in given for site in ((some,) if isinstance(some, str) else some)})
    return cached(tmp_path_factory.mktemp("tuned") / "shards", sites, count=60, dtype=torch.float32)


def trained(shards, kind, rule):
    config = TrainConfig(latents=64, k=6, activation=rule, batch=256, tokens=256 * 60, held_out=0.0, **KINDS[kind])
    return train(config, shards, device="cpu", progress=False)


def measured(dictionary, kl=1.0):
    held_out = list(batches(token_blocks(model(), texts(20, seed=99), 16), 20))
    with torch.no_grad():
        return [float(value) for value in losses(dictionary.double(), model(), held_out[0], kl)]


@pytest.mark.parametrize(
    ("kind", "rule"), [("sae", "topk"), ("sae", "gated"), ("skip", "jumprelu"), ("cross-layer", "batch_topk")]
)
def test_the_models_loss_comes_down_further_than_by_reconstruction_alone(kind, rule, shards):
    dictionary = trained(shards, kind, rule).double()
    before = {name: tensor.clone() for name, tensor in dictionary.named_parameters()}
    options = dict(tokens=128 * 60, batch=8, context=16, lr=3e-3, progress=False)
    many = texts(400, seed=1)
    by_both = finetune(dictionary, model(), many, kl=1.0, **options)
    by_fvu = finetune(dictionary, model(), many, kl=0.0, **options)
    (_, start), (_, both), (_, alone) = measured(dictionary), measured(by_both), measured(by_fvu)
    assert both < 0.95 * start and both < alone
    assert_close(dict(dictionary.named_parameters()), before, rtol=0, atol=0)
    assert_close(by_both.W_dec.norm(dim=1), dictionary.W_dec.norm(dim=1))
    assert by_both.metadata["finetuned"]["of"] == dictionary.fingerprint != by_both.fingerprint
    if kind == "cross-layer":
        assert not by_both.W_dec[32:, :64].any()


def test_the_models_parameters_are_left_as_they_were(shards):
    wanted = [parameter.requires_grad for parameter in model().parameters()]
    state = [parameter._version for parameter in model().parameters()]
    finetune(trained(shards, "sae", "topk").double(), model(), texts(8), tokens=64, context=16, progress=False)
    assert [parameter.requires_grad for parameter in model().parameters()] == wanted
    assert [parameter._version for parameter in model().parameters()] == state


def test_what_cannot_be_tuned_is_a_user_error(shards):
    dictionary = trained(shards, "sae", "topk").double()
    for wrong in (dict(tokens=0), dict(kl=-1.0), dict(lr=0.0), dict(batch=0)):
        with pytest.raises(UserError, match="above zero"):
            finetune(dictionary, model(), texts(3), progress=False, **wrong)
    with pytest.raises(UserError, match="two tokens"):
        finetune(dictionary, model(), [], context=16, progress=False)
