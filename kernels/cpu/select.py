"""Selection on the CPU: the k largest of each row, reading the row once.

The k largest entries lie in the k groups with the largest maxima. With groups of 8 columns a stride apart the maxima are a
vector operation, and they are found by the same rule, so a row is read once where a full selection reads it several times:

    maxima of groups of 8 -> their top k, by the same rule -> 8 k candidates -> their top k

The tie rule (equal values go to the lowest latent) needs more only where values are equal: those rows are sorted.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 8


def some_top(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and columns of a top k of each row, in no order; which of several equal entries is left open."""
    width = pre.shape[1]
    groups = width // GROUP
    if groups <= 2 * k:
        return torch.topk(pre, k, sorted=False)
    whole = groups * GROUP
    _, best = some_top(pre[:, :whole].unflatten(1, (GROUP, groups)).amax(1), k)
    columns = (best[:, :, None] + torch.arange(0, whole, groups, device=pre.device)).flatten(1)
    if whole < width:
        columns = torch.cat([columns, torch.arange(whole, width, device=pre.device).expand(len(pre), -1)], 1)
    values, place = torch.topk(pre.gather(1, columns), k, sorted=False)
    return values, columns.gather(1, place)


def top(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and columns of the top k of each row, largest first, ties to the lowest column."""
    values, columns = some_top(pre, min(k + 1, pre.shape[1]))
    values, order = values.sort(dim=1, descending=True)
    columns = columns.gather(1, order)
    tied = has_ties(values)
    if tied.any():
        ranked, where = pre[tied].sort(dim=1, descending=True, stable=True)
        values[tied, :k], columns[tied, :k] = ranked[:, :k], where[:, :k]
    return values[:, :k].contiguous(), columns[:, :k].contiguous()


def top_of_candidates(values: Tensor, latents: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and latents of the top k of each row of candidates, largest first, ties to the lowest latent."""
    chosen, place = torch.topk(values, min(k + 1, values.shape[1]), dim=1)
    found = latents.gather(1, place)
    tied = has_ties(chosen)
    if tied.any():
        ascending, order = latents[tied].sort(dim=1)
        ranked, where = values[tied].gather(1, order).sort(dim=1, descending=True, stable=True)
        chosen[tied, :k], found[tied, :k] = ranked[:, :k], ascending.gather(1, where[:, :k])
    return chosen[:, :k].contiguous(), found[:, :k].contiguous()


def has_ties(descending: Tensor) -> Tensor:
    """Which rows have equal neighbours, NaN equal to NaN."""
    left, right = descending[:, :-1], descending[:, 1:]
    return ((left == right) | (left.isnan() & right.isnan())).any(1)
