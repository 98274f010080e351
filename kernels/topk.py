"""Exact top-k of each row, and the encoder of a TopK dictionary.

    pre[t, j]  = sum_d x[t, d] W_enc[j, d] + b_enc[j]
    topk(pre)  = for each t the k pairs (pre[t, j], j) that come first by value descending, then index ascending
    encode     = topk, then values below zero become zero (Gao et al. 2024, arXiv 2406.04093, eq. 3)

`torch.topk` leaves open which of several equal values it returns and in which order. Here the answer is one: equal
values go to the lowest index. Asking `torch.topk` for k + 1 values shows whether the k-th value is tied with one that was
left out; only such rows are sorted whole. NaN counts as the largest value, so a poisoned row shows in its values.

Gradients are those of a gather: each kept value that is above zero passes its cotangent to its own pre-activation, and so
to x, W_enc and b_enc; values that the ReLU cut pass none.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def topk(pre: Float[Tensor, "token latent"], k: int) -> tuple[Float[Tensor, "token k"], Int[Tensor, "token k"]]:
    """The k largest entries of each row, largest first, ties to the lowest index; differentiable in `pre`.

    For example `topk([[1., 3., 3., 2.]], 2)` gives values `[[3., 3.]]` and indices `[[1, 2]]`. Not ReLU'd.
    Raises ValueError unless 1 <= k <= latent.
    """
    latents = pre.shape[1]
    if not 1 <= k <= latents:
        raise ValueError(
            f"expected k in [1, {latents}], the number of latents; got {k}; lower k or widen the dictionary"
        )
    with torch.no_grad():
        values, indices = torch.topk(pre, min(k + 1, latents), dim=1)
        tied = torch.zeros(len(pre), dtype=torch.bool, device=pre.device)
        if k < latents:
            last, next_ = values[:, k - 1], values[:, k]
            tied = (last == next_) | (last.isnan() & next_.isnan())
        indices = _lowest_index_first(values[:, :k], indices[:, :k])
        if tied.any():
            indices[tied] = torch.sort(pre[tied], dim=1, descending=True, stable=True).indices[:, :k]
    return pre.gather(1, indices), indices


def _lowest_index_first(values: Float[Tensor, "token k"], indices: Int[Tensor, "token k"]) -> Int[Tensor, "token k"]:
    by_index = indices.argsort(dim=1)
    by_value = values.gather(1, by_index).argsort(dim=1, descending=True, stable=True)
    return indices.gather(1, by_index.gather(1, by_value))


def encode_topk(
    x: Float[Tensor, "token d"], W_enc: Float[Tensor, "latent d"], b_enc: Float[Tensor, "latent"], k: int
) -> tuple[Float[Tensor, "token k"], Int[Tensor, "token k"]]:
    """The k largest pre-activations `x @ W_enc.T + b_enc` of each token, ReLU'd, with their latents.

    Values are float32 (float64 for float64 input), largest first; 0 marks an empty slot. Differentiable in x, W_enc and
    b_enc. This definition holds the `[token latent]` matrix. Raises ValueError unless 1 <= k <= latent.
    """
    values, indices = topk(torch.addmm(at_least_float32(b_enc), at_least_float32(x), at_least_float32(W_enc).T), k)
    return values.relu(), indices


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or untouched if it is float32 or float64."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
