"""The best one-to-one matching of two sets: shortest augmenting paths with prices (Jonker and Volgenant 1987, as in Crouse 2016).

Rows are matched one after another. For each, the cheapest path through already matched pairs to a free column is grown as in
Dijkstra's algorithm, over costs reduced by prices that keep them at zero or more; then the pairs along the path change sides. The
inner step is over all columns at once, so hundreds of rows take about a second. scipy has the same function, but the package does
not depend on scipy.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def assign(score: Float[Tensor, "row col"]) -> Int[Tensor, "row"]:
    """The column of each row, -1 for none, such that the summed score is largest; as many pairs as the smaller side has.

    ValueError for a score that is not finite.
    """
    if not torch.isfinite(score).all():
        raise ValueError("expected finite scores to match by; got NaN or infinity")
    if len(score) > score.shape[1]:
        columns = assign(score.T)
        out = torch.full((len(score),), -1)
        out[columns] = torch.arange(len(columns))
        return out
    cost = -score.detach().double().cpu().numpy()
    row_price, col_price = np.zeros(cost.shape[0]), np.zeros(cost.shape[1])
    owner, column = np.full(cost.shape[1], -1), np.full(cost.shape[0], -1)
    for row in range(cost.shape[0]):
        _augment(cost, row, row_price, col_price, owner, column)
    return torch.from_numpy(column)


def _augment(
    cost: np.ndarray, start: int, row_price: np.ndarray, col_price: np.ndarray, owner: np.ndarray, column: np.ndarray
) -> None:
    """Match one more row, changing earlier pairs where that is cheaper; arrays are changed in place."""
    distance, before = np.full(len(col_price), np.inf), np.full(len(col_price), -1)
    is_done, rows = np.zeros(len(col_price), dtype=bool), []
    row, reached = start, 0.0
    while True:
        rows.append(row)
        through = reached + cost[row] - row_price[row] - col_price
        is_nearer = ~is_done & (through < distance)
        distance[is_nearer], before[is_nearer] = through[is_nearer], row
        end = int(np.argmin(np.where(is_done, np.inf, distance)))
        reached, is_done[end] = distance[end], True
        if owner[end] < 0:
            break
        row = int(owner[end])
    row_price[start] += reached
    others = np.array(rows[1:], dtype=int)
    row_price[others] += reached - distance[column[others]]
    col_price[is_done] -= reached - distance[is_done]
    while True:
        row = int(before[end])
        owner[end] = row
        column[row], end = end, int(column[row])
        if row == start:
            return
