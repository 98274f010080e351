"""Sums of chosen rows, and products with them: the kernels under `decode`, `contract` and `weight_gradient`.

    sum_rows       out[p]    = sum over the slots [begin[p], end[p]) of weights[slot] x[places[slot]]
    contract_rows  out[t, j] = <x[t], W[indices[t, j]]>

`decode` is `sum_rows` over each token's slots; `weight_gradient` (gradient.py) is the same over each latent's. A sum is
in float32 in the order of its slots, so it repeats bit for bit.

Both take a strip of 256 columns at a time, and all tokens before the next strip: a strip of W (16 MiB for 32,768 latents in
bfloat16) stays in the L2 cache while tokens ask for its rows, so that device memory is read about once, latent * d,
rather than token * k * d. For `contract` that means several partial results [strip token k], added in order; W that fits
the cache whole, or is too high for its strips to fit, is taken in one. Gao et al. 2024, arXiv 2406.04093, section 2.3.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton.language as tl
from torch import Tensor

from .. import reference
from ..reference import check_indices
from .table import kernel, row, run

STRIP = 256
CACHE = 32 * 2**20  # bytes of W that are counted on to stay in L2


def decode(values: Tensor, indices: Tensor, W: Tensor) -> Tensor:
    """`[token d]` in the type of `values`; float64 is computed by the definition."""
    check_indices(indices, len(W))
    if W.dtype == torch.float64:
        return reference.decode(values, indices, W)
    tokens, k = indices.shape
    out = torch.empty(tokens, W.shape[1], dtype=values.dtype, device=W.device)
    begin = torch.arange(tokens, device=W.device) * k
    sum_into(out, values.reshape(-1), indices.reshape(-1), begin, begin + k, W)
    return out


def contract(rows: Tensor, indices: Tensor, W: Tensor) -> Tensor:
    """`[token k]` in float32; float64 is computed by the definition."""
    check_indices(indices, len(W))
    if W.dtype == torch.float64:
        return reference.contract(rows, indices, W)
    rows, W, indices = readable(rows), readable(W), indices.contiguous()
    (tokens, k), d = indices.shape, W.shape[1]
    width = strip_width(W)
    strips = max(-(-d // width), 1)
    out = torch.empty(strips, tokens, k, dtype=torch.float32, device=W.device)
    grid = (tokens * -(-k // 8), strips)
    run(CONTRACT, _shape(d), grid, rows, W, indices, out, tokens, k, width, d, rows.stride(0), W.stride(0))
    return out[0] if strips == 1 else out.sum(0)


def sum_into(
    out: Tensor,
    weights: Tensor,
    places: Tensor,
    begin: Tensor,
    end: Tensor,
    x: Tensor,
    partial: Tensor | None = None,
) -> None:
    """Sums of rows of `x` to the rows of `out`, and those past its last to `partial`, where an empty sum is not written."""
    # An expanded tensor stays so when it is reshaped.
    weights, places = weights.contiguous(), places.contiguous()
    x, d = readable(x), x.shape[1]
    partial = out if partial is None else partial
    grid = (len(begin), -(-d // (STRIP if d > 64 else 64)))
    run(SUM, _shape(d), grid, x, weights, places, begin, end, out, partial, len(out), d, x.stride(0))


def strip_width(W: Tensor) -> int:
    """Columns that `contract` takes at a time: all, or as many of W as the cache holds."""
    latents, d = W.shape
    fit = CACHE // (max(latents, 1) * W.element_size()) // STRIP * STRIP
    return min(fit, d) if fit and d else max(d, 1)


def readable(x: Tensor) -> Tensor:
    """`x` with a contiguous last axis."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _shape(d: int) -> str:
    return "wide" if d > 64 else "narrow"


@kernel
@no_type_check
def sum_rows(x_ptr, weights_ptr, places_ptr, begin_ptr, end_ptr, out_ptr, partial_ptr, bags, d, x_row,
             BK: tl.constexpr, BD: tl.constexpr):  # fmt: skip
    """One strip of one sum; slots of weight 0 are not read."""
    bag = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BD + tl.arange(0, BD)
    inside = column < d
    begin, end = tl.load(begin_ptr + bag), tl.load(end_ptr + bag)
    if (bag < bags) | (begin < end):
        total = tl.zeros([BD], tl.float32)
        for start in range(begin, end, BK):
            slot = start + tl.arange(0, BK)
            weight = tl.load(weights_ptr + slot, mask=slot < end, other=0.0).to(tl.float32)
            place = tl.load(places_ptr + slot, mask=slot < end, other=0).to(tl.int64)
            mask = (weight != 0.0)[:, None] & inside[None, :]
            x = tl.load(x_ptr + place[:, None] * x_row + column[None, :], mask=mask, other=0.0)  # [BK, BD]
            total += tl.sum(x.to(tl.float32) * weight[:, None], 0)
        if bag < bags:
            tl.store(out_ptr + bag * d + column, total.to(out_ptr.dtype.element_ty), mask=inside)
        else:
            tl.store(partial_ptr + (bag - bags) * d + column, total.to(partial_ptr.dtype.element_ty), mask=inside)


@kernel
@no_type_check
def contract_rows(x_ptr, w_ptr, indices_ptr, out_ptr, tokens, k, width, d, x_row, w_row,
                  BK: tl.constexpr, BD: tl.constexpr):  # fmt: skip
    """BK slots of one token, over one strip of columns."""
    blocks = tl.cdiv(k, BK)
    token = (tl.program_id(0) // blocks).to(tl.int64)
    slot = tl.program_id(0) % blocks * BK + tl.arange(0, BK)
    first = tl.program_id(1) * width
    last = tl.minimum(first + width, d)
    place = tl.load(indices_ptr + token * k + slot, mask=slot < k, other=0).to(tl.int64)
    w_rows = w_ptr + place * w_row
    total = tl.zeros([BK, BD], tl.float32)
    for start in range(first, last, BD):
        column = start + tl.arange(0, BD)
        x = tl.load(x_ptr + token * x_row + column, mask=column < last, other=0.0).to(tl.float32)  # [BD]
        mask = (slot < k)[:, None] & (column < last)[None, :]
        w = tl.load(w_rows[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)  # [BK, BD]
        total += w * x[None, :]
    at = (tl.program_id(1).to(tl.int64) * tokens + token) * k + slot
    tl.store(out_ptr + at, tl.sum(total, 1), mask=slot < k)


SUM = [
    row("wide", sum_rows, num_warps=1, BK=8, BD=STRIP, x="bf16"),
    row("narrow", sum_rows, num_warps=1, BK=8, BD=64, x="bf16"),
]
CONTRACT = [
    row("wide", contract_rows, num_warps=4, BK=8, BD=STRIP, x="bf16"),
    row("narrow", contract_rows, num_warps=1, BK=8, BD=64, x="bf16"),
]
CONFIGURATIONS = [*SUM, *CONTRACT]
