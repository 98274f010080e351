"""Exact top-k of each row of given pre-activations.

    topk(pre) = for each token the k pairs (pre, latent) that come first by value descending, then latent ascending

`torch.topk` leaves open which of several equal values it returns, and in which order. Here the answer is one, on every
path: equal values go to the lowest index. NaN counts as the largest value, so a poisoned row shows in its values.
The gradient is that of a gather: each kept value passes its cotangent to its own entry.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .dispatch import path_of


def topk(pre: Float[Tensor, "token latent"], k: int) -> tuple[Float[Tensor, "token k"], Int[Tensor, "token k"]]:
    """The k largest entries of each row, largest first, ties to the lowest index; differentiable in `pre`.

    For example `topk([[1., 3., 3., 2.]], 2)` gives values `[[3., 3.]]` and indices `[[1, 2]]`. Not ReLU'd; values have
    the type of `pre`. Raises ValueError unless 1 <= k <= latent.
    """
    check_k(k, pre.shape[1])
    return _topk(pre, k)


def check_k(k: int, latents: int) -> None:
    """ValueError unless `k` latents can be chosen."""
    if not 1 <= k <= latents:
        raise ValueError(
            f"expected k in [1, {latents}], the number of latents; got {k}; lower k or widen the dictionary"
        )


@torch.library.custom_op("unweave::topk", mutates_args=(), schema="(Tensor pre, int k) -> (Tensor, Tensor)")
def _topk(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return path_of("topk", pre, pre.shape[1], k)(pre, k)


@_topk.register_fake
def _(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return pre.new_empty(len(pre), k), pre.new_empty(len(pre), k, dtype=torch.int64)


def _keep(ctx, inputs, output):
    ctx.save_for_backward(output[1])
    ctx.latents = inputs[0].shape[1]


def _scatter(ctx, values, _indices):
    (indices,) = ctx.saved_tensors
    return values.new_zeros(len(values), ctx.latents).scatter_add(1, indices, values), None


_topk.register_autograd(_scatter, setup_context=_keep)
