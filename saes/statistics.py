"""Intervals at 95 %, one definition for all packages: of a share, and of what was drawn again and again.

wilson      of hits / total: the shares p for which |hits / total - p| <= Z √(p (1 - p) / total) (Wilson 1927)
middle      from the 2.5 % to the 97.5 % quantile of draws
bootstrap   middle of a statistic when whole groups (documents, blocks) are drawn with replacement, since tokens of one text are
            not independent (Efron and Tibshirani 1993, chapter 13)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

Z = 1.959964
ENDS = (0.025, 0.975)
HELD = 2**25  # numbers that are drawn at once


def wilson(hits: NDArray[Any] | list[int] | int, total: NDArray[Any] | list[int] | int) -> tuple[Any, Any]:
    """Both ends, for numbers or arrays; 0 and 1 where nothing was counted. Hits beyond what was counted are left out."""
    n = np.asarray(total, np.float64)
    counted = np.maximum(n, 1)
    share = np.minimum(np.asarray(hits, np.float64) / counted, 1)
    square = Z * Z / counted
    centre = (share + square / 2) / (1 + square)
    half = np.sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    low = np.where((n > 0) & (share > 0), centre - half, 0.0)  # of no hits exactly 0, of nothing but hits exactly 1
    high = np.where((n > 0) & (share < 1), centre + half, 1.0)
    return low[()], high[()]  # of numbers, numbers


def middle(drawn: Float[Tensor, "draw ..."]) -> tuple[Any, Any]:
    """Both ends of what was drawn: numbers of `[draw]`, tensors of `[draw col]`."""
    low, high = drawn.quantile(torch.tensor(ENDS, dtype=drawn.dtype), dim=0)
    return (low, high) if drawn.ndim > 1 else (float(low), float(high))


def redrawn(sums: Float[Tensor, "group col"], seed: int, draws: int = 1000) -> Float[Tensor, "draw col"]:
    """Column sums of as many groups as there are, drawn with replacement."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(sums), (draws, len(sums)), generator=generator)
    return torch.cat([sums[part].sum(1) for part in picks.split(max(1, HELD // sums.numel()))])


def bootstrap(
    sums: Float[Tensor, "group col"], statistic: Callable[[Tensor], Tensor], seed: int, draws: int = 1000
) -> list[float]:
    """95 % interval of `statistic(column sums)` when whole groups are drawn with replacement."""
    return list(middle(statistic(redrawn(sums, seed, draws))))


def sum_by(groups: Int[Tensor, "row"], values: Float[Tensor, "row col"]) -> Float[Tensor, "group col"]:
    """Sums of the rows of each group, groups by rising number, in float64."""
    index = groups.unique(return_inverse=True)[1]
    out = torch.zeros(int(index.max()) + 1, values.shape[1], dtype=torch.float64)
    return out.index_add(0, index, values.double())
