"""Intervals of a latent whose codes were not kept: estimates, each with a bound that always holds.

Known exactly are the counts of the 56 histogram bins, the largest value, and some single values: the uniform samples of each
bin and the top examples. Below a value v that lies in bin b there are about

    F(v) = counts of the bins before b + count_b · G_b(v)          G_b linear through (lower edge, 0), (i-th of m samples,
                                                                   i / (m + 1)), (upper edge or largest value, 1)

activations, exactly so if every value of the bin is known. An interval has F(high) - F(low), and at least its whole bins and the
known values in its parts of bins, at most that and what is not known to lie outside: `error` is the larger distance to the two.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..gather.places import WORST, hash_score
from ..shelf.feature import Example, Feature
from ..shelf.shape import damaged
from .intervals import Interval, lower_edges, without_empty

if TYPE_CHECKING:
    from ..shelf.store import FeatureStore

SHIFT = 2**40 + 15


def estimated_intervals(
    store: FeatureStore, latent: int, kind: str, number: int, examples: int, seed: int
) -> list[Interval]:
    """As `intervals.intervals`. Examples are drawn from the samples, by how many activations each stands for; where they are
    too few, the top examples that lie in the interval follow."""
    feature = store[latent]
    bins = _bins(feature)
    if not bins:
        return []
    if not 0 < feature.max_value < math.inf:
        raise damaged(store.folder, f"largest value {feature.max_value} of latent {latent}")
    top, total = feature.max_value, sum(one.count for one in bins)
    if kind == "count":
        low = [_value_below_which(bins, total * place / number) for place in range(number)]
    else:
        low = lower_edges(kind, torch.tensor([top], dtype=torch.float64), number)[0].tolist()
    edges = [*low, top]
    below = [round(sum(one.below(edge) for one in bins)) for edge in low] + [total]
    out = []
    for place in range(number):
        span = (edges[place], edges[place + 1], place == number - 1)
        count = below[place + 1] - below[place]
        least, most = (sum(part) for part in zip(*(one.bounds(*span) for one in bins), strict=True))
        error = max(count - least, most - count)
        found = _drawn(store, feature, bins, span, examples, seed)
        out.append(Interval(span[0], span[1], count, count / total, found, error == 0, error))
    return without_empty(out)


class _Bin:
    """Values from `low` to below `high` (up to `high` in the bin of the largest value); the samples and all known ones."""

    def __init__(self, low: float, high: float, count: int, is_last: bool, samples: list[float], known: list[float]):
        self.low, self.high, self.count, self.is_last = low, high, count, is_last
        self.known = sorted(known)
        self.samples = sorted(samples)

    def below(self, value: float) -> float:
        """About how many values lie below."""
        if len(self.known) >= self.count:
            return float(sum(one < value for one in self.known))
        if value <= self.low or value >= self.high:
            return float(self.count * (value > self.low))
        points, steps = [self.low, *self.samples, self.high], len(self.samples) + 1
        before = sum(point <= value for point in points) - 1
        width = points[before + 1] - points[before]
        return self.count * (before + (value - points[before]) / width) / steps

    def bounds(self, low: float, high: float, is_closed: bool) -> tuple[int, int]:
        """At least and at most so many values with low ≤ value < high (≤ high if closed)."""
        is_apart = self.high < low or (self.high == low and not self.is_last)
        if is_apart or self.low > high or (self.low == high and not is_closed):
            return 0, 0
        if self.low >= low and (is_closed or self.high < high or (self.high == high and not self.is_last)):
            return self.count, self.count
        inside = sum(low <= one < high or (is_closed and one == high) for one in self.known)
        return inside, self.count - (len(self.known) - inside)


def _bins(feature: Feature) -> list[_Bin]:
    """The bins that hold values, lowest first."""
    edges, counts = feature.histogram.edges.clone(), feature.histogram.counts.tolist()
    samples = {example.row: example.value for example in feature.samples}
    known = samples | {example.row: example.value for example in feature.examples}
    last = max((place for place, count in enumerate(counts) if count > 0), default=-1)
    homes = {row: bin_of(edges, value) for row, value in known.items()}
    bounds = [0.0, *edges[1:-1].tolist(), float("inf")]
    out = []
    for place, count in enumerate(counts):
        if count > 0:
            own = [known[row] for row in known if homes[row] == place]
            drawn = [samples[row] for row in samples if homes[row] == place]
            high = feature.max_value if place == last else bounds[place + 1]
            out.append(_Bin(bounds[place], high, count, place == last, drawn, own))
    return out


def bin_of(edges: Tensor, value: float) -> int:
    """The histogram bin of a value: the last whose lower edge it reaches."""
    place = int(torch.searchsorted(edges, torch.tensor(value, dtype=edges.dtype), right=True)) - 1
    return min(max(place, 0), len(edges) - 2)


def _value_below_which(bins: list[_Bin], wanted: float) -> float:
    """The value with about `wanted` values below it."""
    for one in bins:
        if wanted < one.count:
            if len(one.known) >= one.count:
                return one.known[int(wanted)]
            points, steps = [one.low, *one.samples, one.high], len(one.samples) + 1
            place, part = divmod(wanted / one.count * steps, 1)
            return points[int(place)] + part * (points[int(place) + 1] - points[int(place)])
        wanted -= one.count
    return bins[-1].high


def _drawn(
    store: FeatureStore, feature: Feature, bins: list[_Bin], span: tuple[float, float, bool], number: int, seed: int
) -> list[Example]:
    low, high, is_closed = span
    samples, tops = (
        [one for one in some if low <= one.value < high or (is_closed and one.value == high)]
        for some in (feature.samples, feature.examples)
    )
    rows = torch.tensor([one.row for one in samples], dtype=torch.int64)
    # Another seed than that by which the samples were drawn, since theirs are the lowest hashes.
    score = hash_score(rows, torch.full_like(rows, feature.latent), seed + SHIFT)
    weight = []
    for one in samples:
        home = next((home for home in bins if _is_in(home, one.value)), None)
        if home is None:
            raise damaged(store.folder, f"a sample {one.value} of latent {feature.latent} in an empty bin")
        weight.append(home.count / max(len(home.samples), 1))
    # Efraimidis and Spirakis 2006: the largest u^(1 / weight) are a weighted sample without replacement.
    key = ((score.double() + 1) / (WORST + 2)).log() / torch.tensor(weight, dtype=torch.float64)
    ordered = [samples[place] for place in key.argsort(descending=True, stable=True).tolist()]
    ordered += [one for one in tops if one.row not in {sample.row for sample in samples}]
    blocks: set[int] = set()
    first, again = [], []
    for one in ordered:
        block = one.row - one.position
        (again if block in blocks else first).append(one)
        blocks.add(block)
    return sorted((first + again)[:number], key=lambda one: (-one.value, one.row))


def _is_in(home: _Bin, value: float) -> bool:
    return home.low <= value < home.high or (home.is_last and value == home.high)
