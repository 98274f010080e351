"""Confidence intervals: whole groups (documents, blocks) are drawn with replacement, since tokens of one text are not independent."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

HELD = 2**25  # numbers that are drawn at once


def bootstrap(
    sums: Float[Tensor, "group col"], statistic: Callable[[Tensor], Tensor], seed: int, draws: int = 1000
) -> list[float]:
    """95 % interval of `statistic(column sums)` when whole groups are drawn with replacement."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(sums), (draws, len(sums)), generator=generator)
    drawn = statistic(torch.cat([sums[part].sum(1) for part in picks.split(max(1, HELD // sums.numel()))]))
    return [float(drawn.quantile(0.025)), float(drawn.quantile(0.975))]


def sum_by(groups: Int[Tensor, "row"], values: Float[Tensor, "row col"]) -> Float[Tensor, "group col"]:
    """Sums of the rows of each group, groups by rising number, in float64."""
    index = groups.unique(return_inverse=True)[1]
    out = torch.zeros(int(index.max()) + 1, values.shape[1], dtype=torch.float64)
    return out.index_add(0, index, values.double())
