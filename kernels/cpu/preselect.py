"""Exact float32 top k at nearly the cost of a bfloat16 matmul, where the CPU multiplies bfloat16 much faster.

With x = x' + dx and w = w' + dw (x', w' rounded to bfloat16), Cauchy and Schwarz bound what rounding can hide:

    <x, w> + b  <=  U  =  <x', w'> + b + |dx| |w| + |x'| |dw|      (+ what the order of float32 sums can change)

U is itself one matmul: the bias and the two products of norms are five further columns of x' and w'. So

    1. U for every latent, in bfloat16               the one pass over token x latent
    2. the C largest U of each token                 C = 3/2 k, at least k + 48
    3. their pre-activations in float32              a gather and dot
    4. the top k of those; exact if the k-th is above every U that was left out: no other latent can be among the k,
       nor tie with one of them

Tokens that fail the proof (NaN and infinity among them) are left to the caller, who computes them densely. Given up: where
activations are nearly constant beside their norm, the bound is wide and many tokens fail.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .linear import contract
from .select import some_top, top_of_candidates
from .workspace import borrow

BLOCK = 2048, 16_384  # tokens and latents whose bounds are held at a time: 64 MiB
ROWS = 1024  # of the weights, rounded at a time
FEWEST_TOKENS = 256  # below, rounding the weights costs more than the faster matmul saves
ROUNDING = 2.0**-8  # of a bfloat16, relative
TINY = 1e-30  # tile instructions take numbers below 2^-126 as zero
HUGE = 1e37
FLOOR = 2.0**-63  # entries whose squares underflow, or that tile instructions take as zero, are smaller


class Selection(NamedTuple):
    """`values [token k]` and `indices [token k]`, largest first, ties to the lowest latent; `is_proven [token]`."""

    values: Tensor
    indices: Tensor
    is_proven: Tensor


def has_fast_bfloat16() -> bool:
    """Whether this CPU has tile instructions for bfloat16 (AMX) and torch uses them."""
    try:
        return torch.backends.mkldnn.enabled and bool(torch.cpu._is_amx_tile_supported())
    except AttributeError:  # a build of torch that lacks the question
        return False


def pays(x: Tensor, W: Tensor, k: int) -> bool:
    """Whether the detour is quicker than the float32 matmul for these inputs."""
    is_float32 = x.dtype == W.dtype == torch.float32
    return is_float32 and len(x) >= FEWEST_TOKENS and suits(len(W), k) and has_fast_bfloat16()


def suits(latents: int, k: int) -> bool:
    """Whether the candidates of a token are few among its latents."""
    return 16 * candidates(k) <= latents


def candidates(k: int) -> int:
    """How many latents of a token are computed in float32."""
    return k + max(48, k // 2)


def select_topk(x: Tensor, W: Tensor, b: Tensor, k: int) -> Selection:
    """The k largest of `x @ W.T + b` for each token of `x [token d]`; float32."""
    left_out, best = _largest_bounds(x, W, b, candidates(k))
    values, indices = top_of_candidates(contract(x, best, W) + b[best], best, k)
    # No part of a sum can overflow where this holds.
    largest = _norm(x) * _norm(W).max() + torch.where(b.isinf(), 0, b).abs().max()
    return Selection(values, indices, (largest < HUGE) & (_before_rounding(left_out) < values[:, -1]))


def _before_rounding(bound: Tensor) -> Tensor:
    """The largest number that bfloat16 may have rounded to this one."""
    return torch.maximum(bound * (1 + ROUNDING), bound * (1 - ROUNDING)) + TINY


def _largest_bounds(x: Tensor, W: Tensor, b: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """For each token a number that no bound left out exceeds, and the latents `[token count]` with the largest bounds."""
    tokens, latents = BLOCK
    parts = _left(x).split(tokens)
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in parts]
    for first in range(0, len(W), latents):
        right = _right(W[first : first + latents], b[first : first + latents])
        for left, so_far in zip(parts, found, strict=True):
            upper = torch.mm(left, right.T, out=borrow(len(left), len(right), dtype=right.dtype))
            bounds, columns = some_top(upper, min(count, len(right)))
            so_far.append((bounds, columns + first))
    left_out, best = zip(*(_merged(so_far, count) for so_far in found), strict=True)
    return torch.cat(left_out), torch.cat(best)


def _merged(found: list[tuple[Tensor, Tensor]], count: int) -> tuple[Tensor, Tensor]:
    """The smallest of the `count` largest bounds, and the latents of these, from those of blocks of latents."""
    bounds, best = (torch.cat(part, 1) for part in zip(*found, strict=True))
    if bounds.shape[1] > count:
        bounds, place = torch.topk(bounds, count, dim=1, sorted=False)
        best = best.gather(1, place)
    return bounds.amin(1).float(), best


def _left(x: Tensor) -> Tensor:
    """`[token d+5]`: x', three ones for the bias, |dx| and |x'|."""
    rounded = x.bfloat16()
    norms = torch.stack([_norm(x - rounded.float()), _norm(rounded.float())], 1)
    return torch.cat([rounded, rounded.new_ones(len(x), 3), _rounded_up(norms)], 1)


def _right(W: Tensor, b: Tensor) -> Tensor:
    """`[latent d+5]`: w', the bias in three parts, |w| and |dw|; bias and |dw| with room for the error of the sums."""
    latents, d = W.shape
    sums = (d + 8) * 2.0**-22
    out = W.new_empty(latents, d + 5, dtype=torch.bfloat16)
    for start in range(0, latents, ROWS):
        part = slice(start, start + ROWS)
        rounded, norm = W[part].bfloat16(), _norm(W[part])
        error = _norm(W[part] - rounded.float()) + sums * norm
        bias = torch.where(b[part].isinf(), b[part], b[part] + b[part].abs() * sums)
        columns = [*_thirds(bias), _rounded_up(norm), _rounded_up(error)]
        torch.cat([rounded, torch.stack(columns, 1)], 1, out=out[part])
    return out


def _thirds(b: Tensor) -> list[Tensor]:
    """Three bfloat16 numbers whose sum is the float32 number; an infinite one is its own first."""
    parts = []
    for _ in range(3):
        parts.append(b.bfloat16())
        b = torch.nan_to_num(b - parts[-1].float())
    return parts


def _norm(rows: Tensor) -> Tensor:
    """Of each row, and at least what squares that underflow can hide."""
    return torch.linalg.vector_norm(rows, dim=1) + rows.shape[1] ** 0.5 * FLOOR


def _rounded_up(norm: Tensor) -> Tensor:
    """In bfloat16, and not smaller."""
    return (norm * (1 + ROUNDING)).bfloat16()
