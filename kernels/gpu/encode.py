"""Encoder and top k in one: the pre-activations never leave the tensor cores' registers.

    group_matmul   tiles of x @ W_enc.T + b_enc -> the two largest of each 32 latents, and a bound of the rest   groups.py
    merge          the k first of what is listed, row by row                                                    merge.py
    repair         groups whose bound might be among the k are computed again                                   finish.py
    order          the k in the order of the output                                                             finish.py

`encode_threshold` puts the threshold into the first step (what is not above is not there) and replaces the next two by
`gather_active`; `topk` replaces the matmul by a read (`group_rows`). Exact for every input, ties and NaN included;
what is repaired only costs time, (m / 32) P(Poisson(32 k / m) >= 3) groups for a random row of m latents. Nothing is
read back by the host, but for the width of codes without a capacity. Gao et al. 2024, arXiv 2406.04093, section 2.3.

Given up: with more than LARGEST slots a token the plain definition runs (it is no slower: nearly every group would be
repaired). What a row lists, 12 bytes per 32 latents, is held for the whole batch: 3/32 of float32 pre-activations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import reference
from .finish import ACTIVE, ORDER, REPAIR
from .groups import MATMUL, ROWS, deal
from .merge import merge
from .rows import readable
from .table import run

LARGEST = 2048  # slots of a row's list that `repair` holds in registers
GUESS = 512  # slots tried first where no capacity is given


class Groups(NamedTuple):
    """What is kept of every row: keys [row 2*groups] and words [row groups], see keys.py."""

    keys: Tensor
    words: Tensor


def encode_topk(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`[s token k]` float32 pre-activations and latents, largest first, ties to the lowest latent."""
    if k > LARGEST:
        return reference.encode_topk(x, W_enc, b_enc, k)
    inputs = prepared(x, W_enc, b_enc)
    found = group(*inputs)
    entries, doubt = merge(*found, k)
    shape = "matmul_wide" if k > 1024 else "matmul"
    x, W_enc, _ = inputs
    run(
        REPAIR, shape, (len(entries),), entries, doubt, found.words, *inputs, len(x), x.shape[1], W_enc.shape[1],
        found.words.shape[1], k, *strides(x, W_enc),
    )  # fmt: skip
    values, indices = _order(entries, torch.float32)
    return values.view(len(W_enc), len(x), k), indices.view(len(W_enc), len(x), k)


def topk(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`[token k]` of given pre-activations, in their type; otherwise as `encode_topk`."""
    if k > LARGEST:
        return reference.topk(pre, k)
    pre = readable(pre)
    tokens, latents = pre.shape
    found = empty_groups(tokens, latents, pre.device)
    groups = found.words.shape[1]
    run(ROWS, "rows", (tokens, -(-groups // 32)), pre, *found, latents, groups, pre.stride(0))
    entries, doubt = merge(*found, k)
    shape = "rows_wide" if k > 128 else "rows"
    run(
        REPAIR, shape, (tokens,), entries, doubt, found.words, pre, pre, pre, tokens, 0, latents, groups, k, pre.stride(0), 0, 0
    )  # fmt: skip
    return _order(entries, pre.dtype)


def encode_threshold(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, threshold: Tensor, capacity: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`[s token capacity]` pre-activations above the latent's threshold, latents ascending, and how many `[s token]`.

    A capacity of -1 is what the widest token needs, at the cost of one host synchronisation.
    """
    x, W_enc, b_enc = prepared(x, W_enc, b_enc)
    threshold = threshold.to(torch.float32).contiguous()
    found = group(x, W_enc, b_enc, threshold)

    def gather(slots: int) -> tuple[Tensor, Tensor]:
        entries = x.new_empty(len(found.words), slots, dtype=torch.int64)
        count = x.new_empty(len(found.words), dtype=torch.int32)
        run(
            ACTIVE, "active", (len(entries),), *found, entries, count, x, W_enc, b_enc, threshold, len(x), x.shape[1],
            W_enc.shape[1], found.words.shape[1], slots, *strides(x, W_enc),
        )  # fmt: skip
        return entries, count

    return padded(gather, (len(W_enc), len(x)), W_enc.shape[1], capacity)


def padded(
    gather: Callable[[int], tuple[Tensor, Tensor]], rows: tuple[int, int], latents: int, capacity: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Entries found by `gather(slots)` as codes with latents ascending, and their counts."""
    slots = min(GUESS if capacity < 0 else capacity, latents)
    entries, count = gather(slots)
    if capacity < 0 and count.numel():
        needed = max(int(count.max()), 1)
        entries, count = gather(needed) if needed > slots else (entries[:, :needed].contiguous(), count)
    values, indices = _order(entries, torch.float32, count)
    return values.view(*rows, values.shape[1]), indices.view(*rows, values.shape[1]), count.view(rows)


def group(x: Tensor, W_enc: Tensor, b_enc: Tensor, threshold: Tensor | None = None) -> Groups:
    """The two largest of each group of latents, for every token and dictionary."""
    stack, latents, d = W_enc.shape
    found = empty_groups(stack * len(x), latents, x.device)
    groups = found.words.shape[1]
    shape = "32_bit" if x.dtype == torch.float32 else "16_bit"
    block = next(row.constants["BM"] for row in MATMUL if row.shape == shape)
    run(
        MATMUL, shape, (stack * -(-len(x) // block) * (groups // 4),), x, W_enc, *deal(b_enc, threshold), *found, len(x),
        d, latents, groups, *strides(x, W_enc),
    )  # fmt: skip
    return found


def empty_groups(rows: int, latents: int, device: torch.device) -> Groups:
    """Room for the groups of so many rows: four groups a tile of 128 latents."""
    groups = -(-latents // 128) * 4
    return Groups(
        torch.empty(rows, 2 * groups, dtype=torch.int32, device=device),
        torch.empty(rows, groups, dtype=torch.int32, device=device),
    )


def prepared(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices of one type, the wider, and a float32 bias; rows as the kernels are compiled for, by a copy where not."""
    dtype = torch.promote_types(x.dtype, W_enc.dtype)
    return _aligned(x.to(dtype)), _aligned(W_enc.to(dtype)), b_enc.float().contiguous()


def _aligned(rows: Tensor) -> Tensor:
    """Rows that begin and end at multiples of 16 elements; what is added is zero."""
    beyond = -rows.shape[-1] % 16
    if beyond or rows.stride(-1) != 1:
        return pad(rows, (0, beyond)).contiguous()
    is_aligned = rows.data_ptr() % 16 == 0 and all(stride % 16 == 0 for stride in rows.stride()[:-1])
    return rows if is_aligned else rows.clone(memory_format=torch.contiguous_format)


def strides(x: Tensor, W_enc: Tensor) -> tuple[int, int, int]:
    return x.stride(0), W_enc.stride(1), W_enc.stride(0)


def _order(entries: Tensor, dtype: torch.dtype, count: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Entries [row slots] in the order of the output, by value, or by latent where `count` tells how many are there."""
    values = torch.empty(entries.shape, dtype=dtype, device=entries.device)
    indices = torch.empty_like(entries)
    rows, slots = entries.shape
    shape = "by_value" if count is None else "by_latent"
    run(ORDER, shape, (rows, -(-slots // 128)), entries, entries if count is None else count, values, indices, slots)
    return values, indices
