import pytest
import torch
from torch.testing import assert_close
from unweave.saes.losses import auxk, fraction_unexplained

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def weights():
    return {"W_enc": randn(9, 4, seed=1), "b_enc": randn(9, seed=2), "W_dec": randn(9, 3, seed=3)}


DEAD = torch.tensor([0, 1, 0, 0, 1, 1, 0, 1, 0], dtype=torch.bool)


def test_predicting_the_batch_mean_scores_one():
    y = randn(50, 7) + 100
    assert_close(fraction_unexplained(y, y.mean(0).expand_as(y)), torch.tensor(1.0, dtype=F64), rtol=1e-10, atol=0)
    assert fraction_unexplained(y, y) == 0


def test_fraction_unexplained_by_hand():
    y, y_hat = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    assert_close(fraction_unexplained(y, y_hat), torch.tensor(0.5))  # error 1, variance 1 + 1


def test_auxk_is_the_dead_latents_share_of_the_error():
    x, error, w = randn(20, 4), randn(20, 3, seed=5), weights()
    pre = (x @ w["W_enc"].T + w["b_enc"]).masked_fill(~DEAD, -torch.inf)
    order = pre.argsort(dim=1, descending=True)[:, :2]
    e_hat = torch.zeros_like(pre).scatter(1, order, pre.gather(1, order)) @ w["W_dec"]
    expected = (error - e_hat).square().sum() / error.square().sum()
    assert_close(auxk(x, error, DEAD, **w, k_aux=2), expected, rtol=1e-10, atol=0)
    fewer = auxk(x, error, DEAD, **w, k_aux=8)
    assert_close(fewer, auxk(x, error, DEAD, **w, k_aux=4) / 2, rtol=1e-10, atol=0)


@pytest.mark.parametrize("bias", [0.0, -50.0])
def test_auxk_reaches_encoder_bias_and_decoder_of_dead_latents_and_nothing_else(bias):
    x, y, w = randn(20, 4), randn(20, 3, seed=5), weights()
    w["b_enc"] = w["b_enc"] + bias  # with -50 every dead latent is far below zero, where a ReLU would pass nothing
    for tensor in w.values():
        tensor.requires_grad_()
    y.requires_grad_()
    auxk(x, y * 2, DEAD, **w, k_aux=4).backward()
    assert y.grad is None or not y.grad.any()
    for name, tensor in w.items():
        rows = tensor.grad.flatten(1).any(1) if tensor.ndim == 2 else tensor.grad != 0
        assert rows.tolist() == DEAD.tolist(), name


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec"])
def test_auxk_gradient_is_that_of_its_value(name):
    x, error, w = randn(6, 4), randn(6, 3, seed=5), weights()
    torch.autograd.gradcheck(lambda part: auxk(x, error, DEAD, **{**w, name: part}, k_aux=2), w[name].requires_grad_())


def test_auxk_without_dead_latents_is_zero():
    assert auxk(randn(5, 4), randn(5, 3), torch.zeros(9, dtype=torch.bool), **weights(), k_aux=2) == 0
