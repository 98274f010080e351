"""Codes times matrix and its derivatives on the CPU, from torch's embedding bags.

Codes times matrix is an embedding bag with per-sample weights; transposed codes times rows is one too, over the slots
listed by latent (a stable sort), so its sums have a fixed order; entries of rows @ W.T are the embedding bag's derivative
by its weights.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from ..reference import at_least_float32, check_indices
from .lists import Lists, list_by_latent


def decode(values: Tensor, indices: Tensor, W: Tensor) -> Tensor:
    """Codes times matrix: an embedding bag with per-sample weights."""
    check_indices(indices, len(W))
    W, weights = at_least_float32(W), at_least_float32(values)
    if not indices.numel():
        return values.new_zeros(len(values), W.shape[1])
    return embedding_bag(indices, W, per_sample_weights=weights.to(W.dtype), mode="sum").to(values.dtype)


def contract(rows: Tensor, indices: Tensor, W: Tensor) -> Tensor:
    """Chosen entries of rows @ W.T, as the derivative of an embedding bag by its weights."""
    check_indices(indices, len(W))
    rows, W = at_least_float32(rows), at_least_float32(W)
    tokens, k = indices.shape
    if not indices.numel():
        return rows.new_zeros(tokens, k)
    of_token = torch.arange(tokens, dtype=indices.dtype, device=indices.device).repeat_interleave(k)
    start = torch.arange(0, tokens * k, k, dtype=indices.dtype, device=indices.device)
    out = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        rows.contiguous(), W.contiguous(), indices.reshape(-1).contiguous(), start, of_token, 0
    )
    return out.view(tokens, k)


def weight_gradient(values: Tensor, indices: Tensor, rows: Tensor, latents: int) -> Tensor:
    """Transposed codes times rows."""
    return _slots_of(indices, latents).sum(values, rows)


def sae_gradient(
    g: Tensor, x: Tensor, values: Tensor, indices: Tensor, W_dec: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Slots are listed once for both matrices."""
    d_pre = contract(g, indices, W_dec) * (values != 0)
    lists = _slots_of(indices, len(W_dec))
    of_b_enc = d_pre.new_zeros(len(W_dec)).index_add_(0, indices.reshape(-1), d_pre.reshape(-1))
    return d_pre, lists.sum(values, g), lists.sum(d_pre, x), of_b_enc


def _slots_of(indices: Tensor, latents: int) -> Lists:
    """The slots of codes by latent, each with its token."""
    tokens = torch.arange(len(indices), device=indices.device)[:, None].expand(indices.shape)
    return list_by_latent(indices, tokens, latents)
