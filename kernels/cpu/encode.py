"""Encoders on the CPU: blocks of pre-activations that stay in the cache, and selection that reads them once.

The encoder's matmul is done in blocks of 1,024 tokens by 16,384 latents (64 MiB, in a buffer that stays: workspace.py), and
each block's top k is taken before the next overwrites it (select.py); the survivors of several blocks of latents are merged.
Where the CPU multiplies bfloat16 much faster, latents are pre-selected by an upper bound instead, and tokens for which that
cannot be proven are done here (preselect.py).

Batch top k keeps 4 k candidates of each token; the batch's threshold among them is a lower bound, and tokens whose last
candidate reaches it are redone whole. A token's pre-activations may differ in their last bits between the two, so the bound
is lowered by what the order of a float32 sum can change.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..reference import at_least_float32
from . import preselect
from .select import top, top_of_candidates
from .workspace import borrow

TOKENS, LATENTS, SLICE = 1024, 16_384, 4096  # of a block (64 MiB), and the latents of one matmul


def topk(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, sorted, ties to the lowest index."""
    return top(pre.contiguous(), k)


def encode_topk(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`[s token k]`: the top k of every block of latents, merged."""
    x, W_enc, b_enc = at_least_float32(x), at_least_float32(W_enc), at_least_float32(b_enc)
    values, indices = zip(*(_topk_of(x, W, b, k) for W, b in zip(W_enc, b_enc, strict=True)), strict=True)
    return torch.stack(values), torch.stack(indices)


def _topk_of(x: Tensor, W: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    if not preselect.pays(x, W, k):
        return _dense_topk(x, W, b, k)
    values, indices, is_proven = preselect.select_topk(x, W, b, k)
    rest = (~is_proven).nonzero().squeeze(1)
    if len(rest):
        values[rest], indices[rest] = _dense_topk(x[rest], W, b, k)
    return values, indices


def _dense_topk(x: Tensor, W: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, indices = x.new_empty(len(x), k, dtype=W.dtype), x.new_empty(len(x), k, dtype=torch.int64)
    for start, part in enumerate_blocks(x):
        found = [(first, top(pre, min(k, pre.shape[1]))) for first, pre in _preactivations(part, W, b)]
        best = found[0][1]
        if len(found) > 1:
            latents = torch.cat([index + first for first, (_, index) in found], dim=1)
            best = top_of_candidates(torch.cat([value for _, (value, _) in found], dim=1), latents, k)
        values[start : start + len(part)], indices[start : start + len(part)] = best
    return values, indices


def encode_threshold(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, threshold: Tensor, capacity: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`[s token capacity]`: what is above the latent's threshold."""
    x, W_enc, b_enc = at_least_float32(x), at_least_float32(W_enc), at_least_float32(b_enc)
    lists = []
    for s, (W, b) in enumerate(zip(W_enc, b_enc, strict=True)):
        for start, part in enumerate_blocks(x):
            for first, pre in _preactivations(part, W, b):
                token, latent = (~(pre <= threshold[s, first : first + pre.shape[1]])).nonzero(as_tuple=True)
                lists.append((s * len(x) + start + token, first + latent, pre[token, latent]))
    return _padded(*_joined(lists, x.new_empty(0, dtype=W_enc.dtype)), (len(W_enc), len(x)), capacity)


def encode_batch_topk(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    """`[s token capacity]`: the token * k largest of the batch."""
    x, W_enc, b_enc = at_least_float32(x), at_least_float32(W_enc), at_least_float32(b_enc)
    lists = []
    for s in range(len(W_enc)):
        token, latent, value = _batch_topk_of(x, W_enc[s], b_enc[s], k)
        lists.append((s * len(x) + token, latent, value))
    return _padded(*_joined(lists, x.new_empty(0, dtype=W_enc.dtype)), (len(W_enc), len(x)), capacity)


def _batch_topk_of(x: Tensor, W: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The batch's token * k largest entries, by token, then latent."""
    width, most = min(4 * k, len(W)), len(x) * k
    values, indices = (part[0] for part in encode_topk(x, W[None], b[None], width))
    bound = _lowered(values.flatten().topk(most).values[-1], x, W) if len(x) else values.new_zeros(())
    # NaN is above every bound; a token whose last candidate reaches the bound may have more such entries.
    keep = ~(values < bound)
    more = (keep[:, -1] & (width < len(W))).nonzero().squeeze(1)
    keep[more] = False
    token, slot = keep.nonzero(as_tuple=True)
    lists = [(token, indices[token, slot], values[token, slot])]
    for start, part in enumerate_blocks(x[more]):
        for first, pre in _preactivations(part, W, b):
            row, latent = (~(pre < bound)).nonzero(as_tuple=True)
            lists.append((more[start + row], first + latent, pre[row, latent]))
            # Where many are equal, or NaN, nearly all reach the bound.
            if sum(len(value) for *_, value in lists) > 2 * most:
                lists = [_largest(lists, len(W), most)]
    return _largest(lists, len(W), most)


def _largest(lists: list[tuple[Tensor, Tensor, Tensor]], latents: int, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `most` largest entries, ties to the lower token, then latent; in that order."""
    token, latent, value = _joined(lists, lists[0][2])
    order = (token * latents + latent).argsort()
    kept = order[value[order].sort(descending=True, stable=True).indices[:most].sort().values]
    return token[kept], latent[kept], value[kept]


def _lowered(bound: Tensor, x: Tensor, W: Tensor) -> Tensor:
    """Less by how far two float32 computations of one pre-activation near it can be apart; finite rows count."""
    x_norm, W_norm = (torch.linalg.vector_norm(rows, dim=1).nan_to_num(nan=0.0, posinf=0.0).max() for rows in (x, W))
    error = x_norm * W_norm * (x.shape[1] + 8) + bound.abs()
    return bound - (error * 2 * torch.finfo(W.dtype).eps).nan_to_num(nan=0.0, posinf=0.0)


def enumerate_blocks(x: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Blocks of tokens with the number of their first."""
    for start in range(0, len(x), TOKENS):
        yield start, x[start : start + TOKENS]


def _preactivations(x: Tensor, W: Tensor, b: Tensor) -> Iterator[tuple[int, Tensor]]:
    """`x @ W.T + b` in blocks of latents, with the number of the first; each overwrites the one before."""
    for first in range(0, len(W), LATENTS):
        block, bias = W[first : first + LATENTS], b[first : first + LATENTS]
        pre = borrow(len(x), len(block), dtype=x.dtype)
        for start in range(0, len(block), SLICE):
            part = slice(start, start + SLICE)
            torch.mm(x, block[part].T, out=pre[:, part])
        yield first, pre.add_(bias)


def _joined(lists: list[tuple[Tensor, Tensor, Tensor]], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if not lists:
        return like.long(), like.long(), like
    token, latent, value = zip(*lists, strict=True)
    return torch.cat(token), torch.cat(latent), torch.cat(value)


def _padded(
    token: Tensor, latent: Tensor, value: Tensor, shape: tuple[int, int], capacity: int
) -> tuple[Tensor, Tensor, Tensor]:
    """A list of (token, latent, value), latents ascending within a token, as padded codes."""
    order = torch.argsort(token, stable=True)
    token, latent, value = token[order], latent[order], value[order]
    count = torch.bincount(token, minlength=shape[0] * shape[1])
    slots = max(1, int(count.max()) if capacity < 0 and count.numel() else capacity)
    slot = torch.arange(len(token), device=token.device) - (count.cumsum(0) - count)[token]
    fits = slot < slots
    values, indices = value.new_zeros(len(count), slots), token.new_zeros(len(count), slots)
    values[token[fits], slot[fits]], indices[token[fits], slot[fits]] = value[fits], latent[fits]
    values[count > slots] = torch.nan
    return values.view(*shape, slots), indices.view(*shape, slots), count.view(shape).int()
