"""The order in which rows are read: a permutation of an epoch's rows, made piece by piece when it is asked for.

* `seed` None: the rows as they are given.
* `window` 0: one permutation of all rows.
* `window` n > 0: the shards that hold rows are put in a random order and taken n at a time; the rows of each window are
  permuted, and window follows window. Only a window's rows are ever held in memory as a permutation.

Every permutation comes from (seed, epoch, window) alone, so that any piece can be had without those before it. Nothing
here depends on how large the pieces are that are asked for.
"""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import UserError


class RowOrder:
    """Pieces of the order of `rows` (None: all) of shards that begin at the rows `starts`."""

    def __init__(
        self, starts: Int[Tensor, "shard_and_end"], rows: Int[Tensor, "row"] | None, seed: int | None, window: int
    ):
        if window < 0:
            raise UserError(f"expected a window of shards, 0 for all of them; got {window}; raise it")
        self.seed, self._starts, self._rows = seed, starts, rows
        self._length = int(starts[-1]) if rows is None else len(rows)
        self.window = window if seed is not None else 0
        self._cuts = starts
        if self.window and rows is not None:
            owner = torch.searchsorted(starts, rows, right=True) - 1
            self._rows = rows[owner.argsort(stable=True)]
            counts = torch.bincount(owner, minlength=len(starts) - 1)
            self._cuts = torch.cat([counts[:0], torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        self._made: tuple[tuple[int, int], Tensor] | None = None
        self._shards: tuple[int, list[list[int]], Tensor] | None = None

    def __len__(self) -> int:
        return self._length

    def piece(self, epoch: int, start: int, stop: int) -> slice | Int[Tensor, "row"]:
        """The rows at the places `start` to `stop` of an epoch's order; a slice where they follow one another."""
        stop = min(stop, len(self))
        if self.seed is None:
            return slice(start, stop) if self._rows is None else self._rows[start:stop]
        if not self.window:
            return self._permuted(epoch, 0)[start:stop]
        ends = self._windows(epoch)[1]
        pieces = [ends[:0]]
        number = int(torch.searchsorted(ends, start, right=True))
        while start < stop:
            before, after = (int(ends[number - 1]) if number else 0), int(ends[number])
            pieces.append(self._permuted(epoch, number)[start - before : stop - before])
            start, number = after, number + 1
        return torch.cat(pieces)

    def after(self, epoch: int, place: int) -> list[tuple[int, int]]:
        """Spans of rows from `start` to `stop`, one for each shard, that are read after those of the window at this place.

        In text order a window is one shard. Empty where there is no next window, or no window at all.
        """
        if self.window:
            windows, ends = self._windows(epoch)
            number = int(torch.searchsorted(ends, place, right=True)) + 1
            wanted = windows[number] if number < len(windows) else []
        elif self.seed is None and self._rows is None:
            number = int(torch.searchsorted(self._starts, place, right=True))
            wanted = [number] if number < len(self._starts) - 1 else []
        else:
            wanted = []
        return [(int(self._starts[shard]), int(self._starts[shard + 1])) for shard in wanted]

    def _windows(self, epoch: int) -> tuple[list[list[int]], Int[Tensor, "window"]]:
        """The shards of each window, and the place at which each window ends."""
        assert self.seed is not None
        if self._shards is None or self._shards[0] != epoch:
            counts = self._cuts.diff()
            used = counts.nonzero().squeeze(1)
            order = used[_permutation(len(used), _mixed(self.seed, epoch, -1))].split(self.window)
            ends = torch.stack([counts[one].sum() for one in order]).cumsum(0) if len(used) else counts[:0]
            self._shards = epoch, [one.tolist() for one in order] if len(used) else [], ends
        return self._shards[1], self._shards[2]

    def _permuted(self, epoch: int, number: int) -> Int[Tensor, "row"]:
        """The rows of one window in their order; the last one is kept."""
        assert self.seed is not None
        if self._made is None or self._made[0] != (epoch, number):
            self._made = None  # before the next is made, not after
            if self.window:
                rows = torch.cat([self._of(shard) for shard in self._windows(epoch)[0][number]])
                rows = rows[_permutation(len(rows), _mixed(self.seed, epoch, number))]
            else:
                rows = _permutation(len(self), (self.seed * 1_000_003 + epoch) % 2**63)
                rows = rows if self._rows is None else self._rows[rows]
            self._made = (epoch, number), rows
        return self._made[1]

    def _of(self, shard: int) -> Int[Tensor, "row"]:
        start, stop = int(self._cuts[shard]), int(self._cuts[shard + 1])
        return torch.arange(start, stop) if self._rows is None else self._rows[start:stop]


def _permutation(n: int, seed: int) -> Int[Tensor, "row"]:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def _mixed(seed: int, epoch: int, window: int) -> int:
    """A seed that differs for every window of every epoch (torch's generator takes the lower half of it)."""
    digest = hashlib.blake2b(f"{seed} {epoch} {window}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
