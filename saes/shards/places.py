"""In which shard a row lies."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import torch
from jaxtyping import Int
from torch import Tensor

MOST_STEPS = 64  # entries of the table for each shard, at most


class RowPlaces:
    """Shards of `counts` rows, one after the other; `starts` is the first row of each, and the end.

    Rows are cut into steps no longer than the shortest shard (the last may be shorter), so that at most one shard begins
    within a step: a table tells the shard at the beginning of each, and one comparison whether the next has begun. That
    takes a third of a binary search. Where shards differ too much for a small table, the search is what is done.
    """

    def __init__(self, counts: list[int]):
        sizes = torch.tensor(counts, dtype=torch.int64)
        self.starts: Tensor = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
        self._ends, self._list = self.starts[1:], self.starts.tolist()
        shortest = min(counts[:-1] or counts or [1])
        self._bits = shortest.bit_length() - 1
        self._table: Tensor | None = None
        if len(counts) > 1 and int(self.starts[-1]) >> self._bits <= MOST_STEPS * len(counts):
            steps = torch.arange((int(self.starts[-1]) >> self._bits) + 1) << self._bits
            self._table = torch.searchsorted(self.starts, steps, right=True) - 1

    def owners(self, rows: Int[Tensor, "row"]) -> Int[Tensor, "row"]:
        """The shard of every row; rows must be within bounds."""
        if self._table is None:
            return torch.searchsorted(self.starts, rows, right=True) - 1
        owner = self._table.index_select(0, rows >> self._bits)
        return owner.add_(rows >= self._ends.index_select(0, owner))

    def overlapping(self, start: int, stop: int) -> range:
        """Numbers of the shards that hold rows from `start` to `stop`."""
        first = bisect_right(self._list, start) - 1
        return range(first, bisect_left(self._list, stop) if stop > start else first)

    def first(self, number: int) -> int:
        """The first row of a shard."""
        return self._list[number]
