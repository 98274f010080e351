"""Sums over tokens, latent by latent: gradients of the weights, without atomics.

    weight_gradient  out[i] = sum over the slots (t, j) that name latent i of values[t, j] rows[t]
    sae_gradient     of codes by encoder and decoder, all of it in one pass

1. A stable sort lists the slots by latent. A latent's list is cut into segments of SEGMENT slots: its first
   segment is the program of that latent, and the others, at most slots / SEGMENT in all, have programs after those. How
   many there are is known on the device only; the programs past them end at once.
2. Each program sums its segment in order. First segments are written to the result, the others to partial rows.
3. The partial rows of a latent are added to its row in their order.

So results repeat bit for bit, a latent that every token names is spread over many programs, and the host reads nothing
back. `partial` takes slots / SEGMENT rows; nothing of size token * k * d or token * latent exists.
"""

from __future__ import annotations

from typing import NamedTuple, no_type_check

import torch
import triton.language as tl
from torch import Tensor

from .. import reference
from ..reference import check_indices
from .rows import contract, readable, sum_into
from .table import kernel, row, run

SEGMENT = 128


class Segments(NamedTuple):
    """What the programs sum: slots listed by latent, and for each program its latent and its part of the list.

    The first programs are the latents themselves; for the others `first` is the number among them of their latent's first
    one, and `many` [latent] tells how many others a latent has. A program with nothing to do has latent `len(many)`.
    """

    order: Tensor
    tokens: Tensor
    begin: Tensor
    end: Tensor
    latent: Tensor
    many: Tensor
    first: Tensor


def segments(indices: Tensor, latents: int) -> Segments:
    """Cut the slots of `indices` [token k] into segments, all sizes fixed beforehand."""
    # A radix sort of 32 bits takes half the passes of one of 64.
    sorted_latents, order = torch.sort(indices.reshape(-1).int(), stable=True)
    every = torch.arange(latents + 1, dtype=torch.int32, device=indices.device)
    offsets = torch.searchsorted(sorted_latents, every)
    start, stop = offsets[:-1], offsets[1:]
    many = (stop - start - 1).clamp(min=0) // SEGMENT
    last = many.cumsum(0)
    first = last - many
    number = torch.arange(indices.numel() // SEGMENT, device=indices.device)
    latent = torch.searchsorted(last, number, right=True)
    of = latent.clamp(max=latents - 1)
    begin = start[of] + (number - first[of] + 1) * SEGMENT
    end = torch.where(latent < latents, (begin + SEGMENT).minimum(stop[of]), begin)
    return Segments(
        order,
        order // max(indices.shape[1], 1),
        torch.cat([start, begin]),
        torch.cat([(start + SEGMENT).minimum(stop), end]),
        torch.cat([every[:-1].long(), latent]),
        many,
        first,
    )


def weight_gradient(values: Tensor, indices: Tensor, rows: Tensor, latents: int) -> Tensor:
    """`[latent d]` in float32, zero where no slot names the latent; float64 is computed by the definition."""
    check_indices(indices, latents)
    if rows.dtype == torch.float64:
        return reference.weight_gradient(values, indices, rows, latents)
    parts = segments(indices, latents)
    out, partial = _room(parts, rows.shape[1])
    sum_into(out, values.reshape(-1)[parts.order], parts.tokens, parts.begin, parts.end, rows, partial)
    add(partial, parts, out)
    return out


def sae_gradient(
    g: Tensor, x: Tensor, values: Tensor, indices: Tensor, W_dec: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `decode(encode_topk(x, W_enc, b_enc, k), W_dec)` by its output's, `g` [token d].

    With d[t, j] = <g[t], W_dec[indices[t, j]]> where values[t, j] is not 0, and 0 where it is (empty, or cut by the ReLU):

        d [token k],   weight_gradient(values, g),   weight_gradient(d, x),   weight_gradient(d, ones)

    which are those of the kept pre-activations, of W_dec [latent d] and W_enc [latent d_in] and of b_enc [latent], in
    float32. Reads a row of W_dec once, and one of `g` and of `x` for each slot. Rows wider than 4096, and float64, are done
    op by op.
    """
    d, d_in = g.shape[1], x.shape[1]
    if max(d, d_in) > 4096 or W_dec.dtype == torch.float64:
        return _op_by_op(g, x, values, indices, W_dec)
    check_indices(indices, len(W_dec))
    g, x, W_dec = readable(g), readable(x), readable(W_dec)
    parts = segments(indices, len(W_dec))
    d_values = torch.empty(indices.shape, dtype=torch.float32, device=g.device)
    (d_dec, more_dec), (d_enc, more_enc), (d_bias, more_bias) = (_room(parts, width) for width in (d, d_in, 1))
    shape = next(str(size) for size in (1024, 2048, 4096) if max(d, d_in) <= size)
    run(
        GRADIENT, shape, (len(parts.latent),), g, x, W_dec, values.contiguous(), *parts[:5], d_values,
        d_dec, d_enc, d_bias, more_dec, more_enc, more_bias, len(W_dec), d, d_in, g.stride(0), x.stride(0),
        W_dec.stride(0),
    )  # fmt: skip
    for partial, out in ((more_dec, d_dec), (more_enc, d_enc), (more_bias, d_bias)):
        add(partial, parts, out)
    return d_values, d_dec, d_enc, d_bias.squeeze(1)


def _op_by_op(
    g: Tensor, x: Tensor, values: Tensor, indices: Tensor, W_dec: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    latents = len(W_dec)
    d_values = torch.where(values != 0, contract(g, indices, W_dec), 0)
    return (
        d_values,
        weight_gradient(values, indices, g, latents),
        weight_gradient(d_values, indices, x, latents),
        weight_gradient(d_values, indices, g.new_ones(len(g), 1), latents).squeeze(1),
    )


def _room(parts: Segments, d: int) -> tuple[Tensor, Tensor]:
    """Rows for the latents, and for the segments beside their first ones."""
    latents = len(parts.many)
    out = torch.empty(latents, d, dtype=torch.float32, device=parts.many.device)
    return out, out.new_empty(len(parts.latent) - latents, d)


def add(partial: Tensor, parts: Segments, out: Tensor) -> None:
    """Add each latent's partial rows to its row of `out`."""
    latents, d = out.shape
    wide = d > 64
    run(
        ADD, "wide" if wide else "narrow", (len(partial), -(-d // (1024 if wide else 64))), partial,
        parts.latent[latents:], parts.many, parts.first, out, latents, d,
    )  # fmt: skip


@kernel
@no_type_check
def add_partials(partial_ptr, latent_ptr, many_rows_ptr, first_ptr, out_ptr, latents, d, BD: tl.constexpr):
    """A strip of the rows of one latent, by the program of its first partial row; the other programs do nothing."""
    number = tl.program_id(0).to(tl.int64)
    latent = tl.load(latent_ptr + number)
    if latent < latents:
        if tl.load(first_ptr + latent) == number:
            column = tl.program_id(1) * BD + tl.arange(0, BD)
            inside = column < d
            total = tl.load(out_ptr + latent * d + column, mask=inside, other=0.0)
            for more in range(0, tl.load(many_rows_ptr + latent)):
                total += tl.load(partial_ptr + (number + more) * d + column, mask=inside, other=0.0)
            tl.store(out_ptr + latent * d + column, total, mask=inside)


@kernel
@no_type_check
def gradient_rows(g_ptr, x_ptr, w_ptr, values_ptr, order_ptr, tokens_ptr, begin_ptr, end_ptr, latent_ptr, d_ptr,
                  dec_ptr, enc_ptr, bias_ptr, more_dec_ptr, more_enc_ptr, more_bias_ptr, latents, d, d_in, g_row, x_row,
                  w_row, BK: tl.constexpr, BD: tl.constexpr):  # fmt: skip
    """One segment: the cotangents of its slots, and its part of the rows of decoder, encoder and bias."""
    number = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(begin_ptr + number), tl.load(end_ptr + number)
    if (number < latents) | (begin < end):
        column = tl.arange(0, BD)
        inside, inside_x = column < d, column < d_in
        w = tl.load(w_ptr + tl.load(latent_ptr + number) * w_row + column, mask=inside, other=0.0).to(tl.float32)
        dec = tl.zeros([BD], tl.float32)
        enc = tl.zeros([BD], tl.float32)
        bias = tl.zeros([BK], tl.float32)
        for start in range(begin, end, BK):
            slot = start + tl.arange(0, BK)
            there = slot < end
            at = tl.load(order_ptr + slot, mask=there, other=0)
            token = tl.load(tokens_ptr + slot, mask=there, other=0)
            value = tl.load(values_ptr + at, mask=there, other=0.0).to(tl.float32)
            mask = (value != 0.0)[:, None] & inside[None, :]
            g = tl.load(g_ptr + token[:, None] * g_row + column[None, :], mask=mask, other=0.0).to(tl.float32)
            mask = (value != 0.0)[:, None] & inside_x[None, :]
            x = tl.load(x_ptr + token[:, None] * x_row + column[None, :], mask=mask, other=0.0).to(tl.float32)
            cotangent = tl.where(value != 0.0, tl.sum(g * w[None, :], 1), 0.0)  # [BK]
            tl.store(d_ptr + at, cotangent, mask=there)
            dec += tl.sum(g * value[:, None], 0)
            enc += tl.sum(x * cotangent[:, None], 0)
            bias += cotangent
        if number < latents:
            tl.store(dec_ptr + number * d + column, dec, mask=inside)
            tl.store(enc_ptr + number * d_in + column, enc, mask=inside_x)
            tl.store(bias_ptr + number, tl.sum(bias, 0))
        else:
            number -= latents
            tl.store(more_dec_ptr + number * d + column, dec, mask=inside)
            tl.store(more_enc_ptr + number * d_in + column, enc, mask=inside_x)
            tl.store(more_bias_ptr + number, tl.sum(bias, 0))


ADD = [row("wide", add_partials, BD=1024), row("narrow", add_partials, num_warps=1, BD=64)]
GRADIENT = [
    row("1024", gradient_rows, num_warps=4, BK=4, BD=1024, x="bf16"),
    row("2048", gradient_rows, num_warps=8, BK=4, BD=2048, x="bf16"),
    row("4096", gradient_rows, num_warps=8, BK=1, BD=4096, x="bf16"),
]
CONFIGURATIONS = [*ADD, *GRADIENT]
