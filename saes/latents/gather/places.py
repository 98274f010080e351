"""Places in a text where latents fire: the best few of each group, with the latent's values around them.

A group is a latent (its top examples) or a latent and a bin of its values (its samples). Each place has a score in [0, 2^31)
and the `keep` lowest scores of a group stay, ties to the lower row. That choice does not depend on the order in which places
come, so it merges exactly:

    top example   score = what is left to the largest float, in order-preserving bits
    sample        score = a hash of row, latent and seed: the lowest of a group are a uniform sample without replacement

Newcomers wait until there are many, then are sorted in; one whose score is above its group's limit never gets that far, so
after the first batches few are looked at. Values around a place are kept sparse: count, then offsets and values of the
tokens in its block on which the latent fires too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...codes import Codes

WORST = 2**31 - 1
LARGEST = 0x7F800000  # the bits of float32 infinity
PENDING = 2**16


class Firings(NamedTuple):
    """What fires in one batch, by latent, then token; `start` is the first token of the token's block, `home` names both."""

    latent: Int[Tensor, "n"]
    token: Int[Tensor, "n"]
    value: Float[Tensor, "n"]
    start: Int[Tensor, "n"]
    home: Int[Tensor, "n"]


class Around(NamedTuple):
    """Values near places, one place after another: how many each has, their places in the window, and they."""

    count: Int[Tensor, "place"]
    offset: Int[Tensor, "entry"]
    value: Float[Tensor, "entry"]

    def take(self, order: Int[Tensor, "chosen"]) -> Around:
        """Those of the chosen places, in that order."""
        entry = spread((self.count.long().cumsum(0) - self.count)[order], self.count[order].long())
        return Around(self.count[order], self.offset[entry], self.value[entry])


class Part(NamedTuple):
    """Places of groups: `key` is group << 31 | score."""

    key: Int[Tensor, "place"]
    row: Int[Tensor, "place"]
    value: Float[Tensor, "place"]
    around: Around

    def take(self, order: Int[Tensor, "chosen"]) -> Part:
        """The chosen places, in that order."""
        return Part(self.key[order], self.row[order], self.value[order], self.around.take(order))


class Places:
    """The `keep` places of lowest score of each of `groups` groups."""

    def __init__(self, groups: int, keep: int):
        self.keep = keep
        self.limit = torch.full((groups,), WORST, dtype=torch.int32)
        self._held, self._pending, self._waiting = no_places(), list[Part](), 0

    def chosen(self, group: Int[Tensor, "n"], score: Int[Tensor, "n"]) -> Int[Tensor, "m"]:
        """Which of these (rows ascending within a group) may yet stay: among the best here and not above the limit."""
        hopeful = (score <= self.limit[group]).nonzero().squeeze(1)
        key = group[hopeful] << 31 | score[hopeful]
        order = key.argsort(stable=True)
        return hopeful[order[rank_in_group(key[order] >> 31) < self.keep]]

    def add(self, part: Part) -> None:
        """Take places in; they are sorted in once they are many."""
        self._pending.append(part)
        self._waiting += len(part.key)
        if self._waiting > max(PENDING, len(self._held.key) // 2):
            self.held()

    def held(self) -> Part:
        """The places that stay of all that came, by group, then score, then row."""
        if self._pending:
            everything = joined([self._held, *self._pending])
            order = everything.row.argsort(stable=True)
            order = order[everything.key[order].argsort(stable=True)]
            rank = rank_in_group(everything.key[order] >> 31)
            self.restore(everything.take(order[rank < self.keep]))
        return self._held

    def restore(self, held: Part) -> None:
        """Hold exactly these, which `held` gave."""
        self._held, self._pending, self._waiting = held, [], 0
        group = held.key >> 31
        last = rank_in_group(group) == self.keep - 1
        self.limit[group[last]] = (held.key[last] & WORST).int()

    def tensors(self, name: str) -> dict[str, Tensor]:
        """What is held, as tensors whose names begin with `name`."""
        held = self.held()
        return {f"{name}.key": held.key, f"{name}.row": held.row, f"{name}.value": held.value} | {
            f"{name}.around_{field}": tensor for field, tensor in held.around._asdict().items()
        }

    def load(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Hold what `tensors` gave."""
        around = Around(*(tensors[f"{name}.around_{field}"] for field in Around._fields))
        self.restore(Part(tensors[f"{name}.key"], tensors[f"{name}.row"], tensors[f"{name}.value"], around))


def no_places() -> Part:
    """A Part without places."""
    whole, small = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.uint8)
    return Part(whole, whole, torch.empty(0), Around(small, small, torch.empty(0, dtype=torch.float16)))


def joined(parts: list[Part]) -> Part:
    """All places of the parts."""
    key, row, value, around = zip(*parts, strict=True)
    return Part(torch.cat(key), torch.cat(row), torch.cat(value), Around(*map(torch.cat, zip(*around, strict=True))))


def firings(codes: Codes, positions: Int[Tensor, "token"], kept: Bool[Tensor, "token"]) -> Firings:
    """What fires on the kept tokens of a batch of whole blocks."""
    slot = ((codes.values > 0) & kept[:, None]).reshape(-1).nonzero().squeeze(1)
    latent = codes.indices.reshape(-1)[slot]
    order = latent.int().argsort(stable=True)
    slot, latent = slot[order], latent[order].long()
    token = slot // codes.values.shape[1]
    start = token - positions[token]
    return Firings(latent, token, codes.values.reshape(-1)[slot].float(), start, latent << 32 | start)


def best_of_blocks(found: Firings, score: Int[Tensor, "n"]) -> Int[Tensor, "m"]:
    """For each latent and block the firing of lowest score, ties to the lower token; in the order of `found`."""
    if not len(score):
        return score
    run = is_first(found.home).cumsum(0) - 1
    lowest = score.new_full((int(run[-1]) + 1,), WORST).scatter_reduce_(0, run, score, "amin")
    best = (score == lowest[run]).nonzero().squeeze(1)
    return best[is_first(run[best])]


def around(found: Firings, places: Int[Tensor, "place"], before: int, after: int) -> Around:
    """The values of the firings at `places` on the tokens around, within the block; the window's own token is left out.

    Offsets count from the window's first token. Since firings are sorted, the neighbours of one stand beside it: both
    directions are walked until no place has a further neighbour.
    """
    steps = []
    for direction, reach in ((-1, before), (1, after)):
        who = torch.arange(len(places))
        for step in range(1, reach + 1):
            at = places[who] + direction * step
            inside = (at >= 0) & (at < len(found.home))
            who, at = who[inside], at[inside]
            by = found.token[at] - found.token[places[who]]
            same = (found.home[at] == found.home[places[who]]) & (by.abs() <= reach)
            who, at, by = who[same], at[same], by[same]
            if not len(who):
                break
            steps.append((who, by + before, found.value[at].clamp_max(65504).half()))
    if not steps:
        return Around(torch.zeros(len(places), dtype=torch.uint8), *no_places().around[1:])
    who, offset, value = (torch.cat(each) for each in zip(*steps, strict=True))
    order = (who << 8 | offset).argsort()
    return Around(torch.bincount(who, minlength=len(places)).byte(), offset[order].byte(), value[order])


def top_score(value: Float[Tensor, "n"]) -> Int[Tensor, "n"]:
    """Lower for larger values (above 0)."""
    return LARGEST - value.view(torch.int32).long()


def hash_score(row: Int[Tensor, "n"], latent: Int[Tensor, "n"], seed: int) -> Int[Tensor, "n"]:
    """31 bits mixed from row, latent and seed (the finaliser of SplitMix64, Steele et al. 2014)."""
    x = row * _signed(0x9E3779B97F4A7C15) + latent * _signed(0xD1342543DE82EF95) + _signed(seed * 0xDA942042E4DD58B5)
    x = (x ^ (x >> 30 & 2**34 - 1)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> 27 & 2**37 - 1)) * _signed(0x94D049BB133111EB)
    return (x ^ (x >> 31 & 2**33 - 1)) & WORST


def _signed(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63


def rank_in_group(sorted_keys: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """0, 1, 2, … within each run of equal keys."""
    place = torch.arange(len(sorted_keys))
    return place - torch.where(is_first(sorted_keys), place, 0).cummax(0).values if len(place) else place


def is_first(sorted_keys: Int[Tensor, "n"]) -> Bool[Tensor, "n"]:
    """True where a run of equal keys begins."""
    out = torch.ones(len(sorted_keys), dtype=torch.bool)
    torch.ne(sorted_keys[1:], sorted_keys[:-1], out=out[1:])
    return out


def spread(starts: Int[Tensor, "run"], counts: Int[Tensor, "run"]) -> Int[Tensor, "entry"]:
    """start, start + 1, … for `count` entries, run after run."""
    first = (starts - (counts.cumsum(0) - counts)).repeat_interleave(counts)
    return first + torch.arange(len(first))
