"""Counts of pairs: on which tokens, and at which positions, each latent fires.

PairCounts is a sorted table of keys latent << 32 | token with their counts: exact, mergeable, and as large as there are
different pairs. Beyond `limit` pairs the rarest are dropped, and `error` says by how much a count may then be too low
(lossy counting, Manku & Motwani 2002); up to there it is 0. Positions are a plain matrix; where that would take more than
CELLS counts, neighbouring positions share one.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .places import is_first, rank_in_group

PAIRS = 2**26
CELLS = 2**27
PENDING = 2**22
WORD = 2**32 - 1


class PairCounts:
    """How often each (latent, token) was seen."""

    def __init__(self, limit: int = PAIRS):
        self.limit, self.error = limit, 0
        self.keys, self.counts = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int32)
        self._pending, self._waiting = list[Tensor](), 0

    def add(self, latent: Int[Tensor, "n"], token: Int[Tensor, "n"]) -> None:
        """Count these pairs."""
        self._pending.append(latent << 32 | token)
        self._waiting += len(latent)
        if self._waiting > max(PENDING, len(self.keys) // 2):
            self.settle()

    def settle(self) -> None:
        """Bring the table up to date with all that was added."""
        if self._pending:
            keys = torch.cat(self._pending).sort().values
            self._pending, self._waiting = [], 0
            first = is_first(keys).nonzero().squeeze(1)
            self._join(keys[first], torch.diff(first, append=torch.tensor([len(keys)])).int())

    def _join(self, keys: Int[Tensor, "n"], counts: Int[Tensor, "n"]) -> None:
        if len(self.keys):
            place = torch.searchsorted(self.keys, keys)
            known = self.keys[place.clamp_max(len(self.keys) - 1)] == keys
            self.counts[place[known]] += counts[known]
            order = torch.cat([self.keys, keys[~known]]).sort()
            self.keys, self.counts = order.values, torch.cat([self.counts, counts[~known]])[order.indices]
        else:
            self.keys, self.counts = keys, counts
        while len(self.keys) > self.limit:
            least = int(self.counts.min())
            self.error += least
            often = self.counts > least
            self.keys, self.counts = self.keys[often], self.counts[often]

    def merge(self, other: PairCounts) -> None:
        """Add another table; errors add up."""
        self.settle()
        other.settle()
        self.error += other.error
        self._join(other.keys, other.counts.clone())

    def top(self, latents: int, number: int) -> dict[str, Tensor]:
        """For each latent its most frequent tokens (-1: none) and their counts, how many it has, and their entropy in bits."""
        self.settle()
        latent, counts = self.keys >> 32, self.counts.long()
        total = torch.zeros(latents, dtype=torch.int64).index_add_(0, latent, counts)
        terms = torch.bincount(latent, counts.double() * counts.double().log2(), latents)
        entropy = torch.where(total > 0, total.clamp_min(1).double().log2() - terms / total.clamp_min(1), 0.0)
        order = self._worth_ranking(latent, latents, number)
        order = order[(latent[order] << 32 | WORD - counts[order]).argsort(stable=True)]
        rank = rank_in_group(latent[order])
        order, rank = order[rank < number], rank[rank < number]
        ids, often = (torch.full((latents, number), empty, dtype=torch.int32) for empty in (-1, 0))
        ids[latent[order], rank] = (self.keys[order] & WORD).int()
        often[latent[order], rank] = self.counts[order]
        return {
            "token_ids": ids,
            "token_counts": often,
            "distinct_tokens": torch.bincount(latent, minlength=latents).int(),
            "firing_entropy": entropy.clamp_min(0).float(),
        }

    def _worth_ranking(self, latent: Int[Tensor, "pair"], latents: int, number: int) -> Int[Tensor, "n"]:
        """Pairs seen more than once, and the others where those are too few to fill the list: most pairs are seen once."""
        often = self.counts > 1
        is_full = torch.bincount(latent[often], minlength=latents) >= number
        return (often | ~is_full[latent]).nonzero().squeeze(1)

    def tensors(self) -> dict[str, Tensor]:
        """The table."""
        self.settle()
        return {"pairs.keys": self.keys, "pairs.counts": self.counts, "pairs.error": torch.tensor(self.error)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """The table that `tensors` gave."""
        self.keys, self.counts, self.error = (
            tensors["pairs.keys"],
            tensors["pairs.counts"],
            int(tensors["pairs.error"]),
        )


class PositionCounts:
    """How often each latent fires at each position (or group of `width` neighbouring ones)."""

    def __init__(self, latents: int, context: int):
        self.width = -(-latents * context // CELLS)
        self.counts = torch.zeros(latents, -(-context // self.width), dtype=torch.int32)
        self.sum = torch.zeros(latents, dtype=torch.int64)

    def add(self, latent: Int[Tensor, "n"], position: Int[Tensor, "n"]) -> None:
        """Count these firings; positions from the context on count as its last."""
        columns = self.counts.shape[1]
        cell = latent * columns + (position // self.width).clamp_max(columns - 1)
        self.counts.view(-1).index_add_(0, cell, torch.ones(len(cell), dtype=torch.int32))
        self.sum.index_add_(0, latent, position)

    def top(self, count: Int[Tensor, "latent"]) -> dict[str, Tensor]:
        """The position with most of a latent's `count` firings (the lowest of equals; -1: none), its share, and the mean."""
        most, where = self.counts.max(1)
        where = (self.counts == most[:, None]).int().argmax(1) * self.width
        fires = count > 0
        return {
            "position_top": torch.where(fires, where, -1).int(),
            "position_share": (most / count.clamp_min(1)).float(),
            "mean_position": torch.where(fires, self.sum / count.clamp_min(1), torch.nan).float(),
        }


def example_entropies(
    rows: Int[Tensor, "latent example"], tokens: Int[Tensor, "row"], positions: Int[Tensor, "row"]
) -> tuple[Float[Tensor, "latent"], Float[Tensor, "latent"]]:
    """Entropy in bits of the token under each latent's examples, and of the two tokens before it."""
    size = int(tokens.max()) + 2

    def before(by: int) -> Tensor:
        earlier = tokens[(rows - by).clamp_min(0)]
        return torch.where(positions[rows.clamp_min(0)] >= by, earlier, size - 1)

    focus, context = tokens[rows.clamp_min(0)].long(), before(2).long() * size + before(1)
    return _entropy(focus, rows >= 0), _entropy(context, rows >= 0)


def _entropy(keys: Int[Tensor, "latent example"], real: Tensor) -> Float[Tensor, "latent"]:
    same = (keys[:, :, None] == keys[:, None, :]) & real[:, None, :]
    share = same.sum(2) / real.sum(1, keepdim=True).clamp_min(1)
    terms = torch.where(real, share.clamp_min(1e-9).log2(), 0.0)
    return 0.0 - terms.sum(1) / real.sum(1).clamp_min(1)  # not -x, which would make a zero negative
