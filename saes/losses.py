"""Losses of dictionary training, as pure functions of tensors.

    reconstruction = mean_t |y - y_hat|^2 / mean_t |y - y_mean|^2                  (the fraction of variance unexplained)
    auxk           = mean_t |e - e_hat|^2 / mean_t |e|^2,  e = y - y_hat held fixed,
                     e_hat = the decoding of the top k_aux latents among the dead    (Gao et al. 2024, appendix A.2)

The dead latents' pre-activations enter `auxk` without a ReLU: a latent that is negative everywhere would otherwise get no
gradient from the loss that is there to revive it. Its gradient reaches W_enc, b_enc and W_dec of the dead rows.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..kernels import decode, topk
from .parallel.ranks import ALONE, Ranks


def fraction_unexplained(y: Float[Tensor, "token d"], y_hat: Float[Tensor, "token d"]) -> Float[Tensor, ""]:
    """Squared error over the variance of `y` about its mean in the batch."""
    return (y - y_hat).square().sum() / variation(y)


def variation(y: Float[Tensor, "token d"], ranks: Ranks = ALONE) -> Float[Tensor, ""]:
    """Sum of squares about the mean of the batch, of which the data ranks hold equal shares."""
    mean = ranks.sum_data(y.mean(0)) / ranks.data
    return ranks.sum_data((y - mean).square().sum()).clamp_min(1e-12)


def aux_width(k: int, d_out: int, latents: int) -> int:
    """k_aux: half the width of what is written, at least k, at most all latents."""
    return min(max(k, d_out // 2), latents)


def auxk(
    x: Float[Tensor, "token d_in"],
    error: Float[Tensor, "token d_out"],
    is_dead: Bool[Tensor, "latent"],
    W_enc: Float[Tensor, "latent d_in"],
    b_enc: Float[Tensor, "latent"],
    W_dec: Float[Tensor, "latent d_out"],
    k_aux: int,
    ranks: Ranks = ALONE,
) -> Float[Tensor, ""]:
    """How badly the dead latents explain the (detached) error; scaled down when fewer than `k_aux` are dead.

    Of several data ranks each gives its tokens' part, and the parts are to be added.
    """
    dead = is_dead.nonzero().squeeze(1)
    total = int(ranks.sum_latent(is_dead.sum()))
    if not total:
        return error.new_zeros(())
    k = min(k_aux, total)
    pre = torch.addmm(b_enc[dead], x, W_enc[dead].T)
    own = topk(pre, min(k, len(dead))) if len(dead) else (pre, dead.new_zeros(pre.shape))
    values, indices = ranks.top(*own, k)
    error = error.detach()
    e_hat = ranks.joined(decode(values, indices, W_dec[dead]))
    missed = (error - e_hat).square().sum() / ranks.sum_data(error.square().sum()).clamp_min(1e-12)
    return missed * (k / k_aux)
