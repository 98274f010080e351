"""What a latent fires on at each strength: its activations above 0 in intervals, with how many and a few places of each.

    width   `number` intervals of equal width from 0 to the largest value, as sae_vis and SAEDashboard cut them
    count   about as many activations in each: interval k begins at the sorted value number ⌊k n / number⌋; values that are
            equal are in one interval, so that there may be fewer
    log     each interval begins at half the value of the next, up from 0 for the first: the last holds the upper half

An interval holds low ≤ value < high, the last its high end too. Places are a uniform sample without replacement: those whose
hash of row, latent and `seed` is lowest (places.py), one of each block first, further ones of a block only where an interval
has no other block (among CANDIDATES lowest hashes a place, which is all of them unless there are very many). All is exact where
the codes were kept, by one latent or for all (`all_intervals`, PIECE firings at a time); estimates.py has the other case.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import UserError
from ..gather.places import WORST, hash_score, rank_in_group
from ..shelf.feature import Example
from .codebook import Codebook, codes_of
from .codes_sort import row_chunks

if TYPE_CHECKING:
    from ..shelf.store import FeatureStore

KINDS = ("width", "count", "log")
PIECE = 2**20
CANDIDATES = 32


class Interval(NamedTuple):
    """Activations with low ≤ value < high (the last: ≤ high): `count` of them, a `share` of all of the latent's.

    The true count is within `error` of `count`: 0 where `is_exact`, a strict bound otherwise. Examples are strongest first.
    """

    low: float
    high: float
    count: int
    share: float
    examples: list[Example]
    is_exact: bool
    error: int


class IntervalTable(NamedTuple):
    """Intervals of many latents: where each begins, where the last ends, activations in each, rows of its examples (-1: none).

    For kind "count" an interval that begins where the next does is empty and means nothing.
    """

    low: Float[Tensor, "latent interval"]
    high: Float[Tensor, "latent"]
    count: Int[Tensor, "latent interval"]
    rows: Int[Tensor, "latent interval example"]


def intervals(
    store: FeatureStore, latent: int, kind: str = "width", number: int = 10, examples: int = 5, seed: int = 0
) -> list[Interval]:
    """The activations of a latent in `number` intervals, lowest first, with up to `examples` places of each; [] if silent.

    Exact where the store kept its codes, else estimates from its histogram and samples with a bound on the error.
    """
    _check(kind, number, examples)
    if store.codebook is None:
        from .estimates import estimated_intervals

        return estimated_intervals(store, latent, kind, number, examples, seed)
    book = codes_of(store, latent)
    table = _table(store, book, latent, latent + 1, kind, number, examples, seed)
    rows, values = book.firings(latent)
    around = torch.arange(-store.manifest["before"], store.manifest["after"] + 1)
    edges = [*table.low[0].tolist(), float(table.high[0])]
    out = []
    for place, count in enumerate(table.count[0].tolist()):
        chosen = table.rows[0, place]
        windows = _values_at(rows, values, chosen[chosen >= 0, None] + around)
        found = [store.example_at(latent, row, window) for row, window in zip(chosen.tolist(), windows, strict=False)]
        found.sort(key=lambda example: (-example.value, example.row))
        out.append(Interval(edges[place], edges[place + 1], count, count / max(len(rows), 1), found, True, 0))
    return without_empty(out)


def without_empty(found: list[Interval]) -> list[Interval]:
    """Leave out the intervals that no value can be in: those that begin where the next does, and all of a silent latent."""
    if not found or found[-1].high <= 0:
        return []
    return [one for one in found[:-1] if one.low < one.high] + found[-1:]


def all_intervals(
    store: FeatureStore, kind: str = "width", number: int = 10, examples: int = 5, seed: int = 0
) -> IntervalTable:
    """What `intervals` gives, for every latent. UserError if the store kept no codes."""
    _check(kind, number, examples)
    book = codes_of(store)
    parts = [_table(store, book, *span, kind, number, examples, seed) for span in _latent_chunks(book)]
    return IntervalTable(*(torch.cat(each) for each in zip(*parts, strict=True)))


def _check(kind: str, number: int, examples: int) -> None:
    if kind not in KINDS or not 1 <= number <= 100 or not 0 <= examples <= 100:
        raise UserError(
            f"expected width, count or log, 1 to 100 intervals and up to 100 examples; got {kind!r}, {number}, {examples}; "
            "change them"
        )


def _latent_chunks(book: Codebook) -> Iterator[tuple[int, int]]:
    return row_chunks(torch.cat([book.count.new_zeros(1), book.count.cumsum(0)]), PIECE)


def _table(
    store: FeatureStore, book: Codebook, first: int, last: int, kind: str, number: int, examples: int, seed: int
) -> IntervalTable:
    latents, rows, values = book.firings_of(first, last)
    own = latents - first
    top = torch.zeros(last - first).scatter_reduce_(0, own, values, "amax").double()
    low = _quantiles(own, values, book.count[first:last], number) if kind == "count" else lower_edges(kind, top, number)
    group = own * number
    for place in range(1, number):
        group += values >= low[:, place][own]
    count = torch.bincount(group, minlength=len(top) * number)
    chosen = torch.full((len(count), examples), -1)
    if examples:
        score = hash_score(rows, latents, seed)
        hopeful = (score <= WORST * (CANDIDATES * examples / count.clamp_min(1))[group]).nonzero().squeeze(1)
        group, rows = group[hopeful], rows[hopeful]
        blocks = rows - store.positions[rows]
        order = _one_of_each_block_first(group, blocks, score[hopeful])
        rank = rank_in_group(group[order])
        order, rank = order[rank < examples], rank[rank < examples]
        chosen[group[order], rank] = rows[order]
    return IntervalTable(low, top, count.view(-1, number), chosen.view(-1, number, examples))


def lower_edges(kind: str, top: Float[Tensor, "latent"], number: int) -> Float[Tensor, "latent interval"]:
    """Where the intervals of equal width or of halves begin, for latents whose largest value is `top`."""
    place = torch.arange(number, dtype=torch.float64)
    if kind == "width":
        return top[:, None] * place / number
    return top[:, None] * torch.where(place > 0, 2.0 ** (place - number), 0.0)


def _quantiles(own: Tensor, values: Tensor, count: Tensor, number: int) -> Float[Tensor, "latent interval"]:
    order = values.argsort()
    ordered = torch.cat([values[order[own[order].argsort(stable=True)]], values.new_zeros(1)])
    begin = count.cumsum(0) - count
    return ordered[begin[:, None] + count[:, None] * torch.arange(number) // number].double() * (count > 0)[:, None]


def _one_of_each_block_first(group: Tensor, blocks: Tensor, score: Tensor) -> Int[Tensor, "n"]:
    """Order by group; within it the lowest of each block, then all others, both by score."""
    order = score.argsort(stable=True)
    order = order[blocks[order].argsort(stable=True)]
    order = order[group[order].argsort(stable=True)]
    again = torch.zeros_like(score)
    same = (group[order][1:] == group[order][:-1]) & (blocks[order][1:] == blocks[order][:-1])
    again[order[1:]] = same.long()
    order = (again * (WORST + 1) + score).argsort(stable=True)
    return order[group[order].argsort(stable=True)]


def _values_at(rows: Tensor, values: Tensor, wanted: Int[Tensor, "place window"]) -> Float[Tensor, "place window"]:
    """The values of a latent that fires on `rows`, on the rows that are wanted."""
    place = torch.searchsorted(rows, wanted.clamp_min(0)).clamp_max(max(len(rows) - 1, 0))
    return torch.where(rows[place] == wanted, values[place], 0.0) if len(rows) else torch.zeros(wanted.shape)
