"""Activations made of a known dictionary: which features, how often, with which, how strong.

    x = sum_j a_j f_j + offset + noise                       f_j unit rows, more of them than x has entries

The construction follows SynthSAEBench (Chanin and Garriga-Alonso 2026, arXiv 2602.14687), in a size for two CPU cores:

    frequencies   top-level features fire with p_r = min(largest, c r^-exponent) by rank r (Zipf); c makes `active` fire on a token
    groups        top-level features come in groups whose members fire together: a Gaussian copula with correlation `together`,
                  which leaves every p_r as it is
    hierarchies   every second of the most frequent features is the root of one of `trees`; where a feature of a tree fires, at most one
                  of its `branches` children does, one of them with probability `share`, the earlier ones more often; so a parent is
                  active whenever its child is, and also alone
    magnitudes    about a mean that falls from 1.25 (frequent) to 1 (rare), normal with deviation `spread`, never below a tenth of
                  the mean; a child's is multiplied by its parent's over the parent's mean
    directions    random, then pushed apart by a few steps down the summed squared cosines

What it leaves out: features that are not directions, magnitudes that depend on the context, and positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import UserError


class Sample(NamedTuple):
    """Activations and what they were made of; a value of 0 is a feature that is silent."""

    x: Float[Tensor, "row d"]
    values: Float[Tensor, "row feature"]


@runtime_checkable
class Known(Protocol):
    """Anything whose features are known: unit directions, each feature's parent (-1: none), and activations on demand."""

    features: Float[Tensor, "feature d"]
    parents: Int[Tensor, "feature"]

    def sample(self, rows: int, seed: int) -> Sample:
        """Activations with their features; the same for the same seed."""
        ...


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """The sizes and rates of a World; the module header says what they mean."""

    d: int = 128
    features: int = 512
    active: float = 8.0
    trees: int = 16
    branches: int = 4
    depth: int = 2
    share: float = 0.7
    exponent: float = 0.5
    largest: float = 0.4
    group: int = 4
    together: float = 0.3
    spread: float = 0.25
    offset: float = 2.0
    noise: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        if self.top < 2 * self.trees:
            raise UserError(
                f"expected at least {self.trees * (self.tree_size + 1)} features for {self.trees} trees of {self.tree_size}; "
                f"got {self.features}; raise features or lower trees, branches or depth"
            )
        for name in ("share", "together"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"expected {name} in [0, 1); got {getattr(self, name)}")
        if not 0 < self.active < self.largest * self.top:
            raise UserError(
                f"expected active above 0 and below {self.largest * self.top:.3g}, which the frequencies allow; got {self.active}"
            )

    @property
    def tree_size(self) -> int:
        """Features of one tree: 1 + branches + branches^2 + … down to `depth`."""
        return sum(self.branches**level for level in range(self.depth + 1))

    @property
    def top(self) -> int:
        """Features without a parent."""
        return self.features - self.trees * (self.tree_size - 1)


class World:
    """A known dictionary: `features [feature d]` unit rows, `parents [feature]`, `frequencies [feature]`, `offset [d]`.

    Top-level features come first, by falling frequency, then the trees' second level, then the third.
    """

    def __init__(self, config: WorldConfig):
        self.config = config
        # A seed of its own: training draws its first weights from a small seed, and the same one would begin at the truth.
        generator = torch.Generator().manual_seed(3_000_000_019 + config.seed)
        self.features = spread_out(torch.randn(config.features, config.d, generator=generator))
        self.offset = config.offset * torch.nn.functional.normalize(torch.randn(config.d, generator=generator), dim=0)
        self.levels, self.parents = trees(config)
        self.given = given_parent(config)
        self.frequencies = self._frequencies()
        self.group_of = torch.randperm(config.top, generator=generator) // config.group
        rank = torch.linspace(0, 1, config.features)
        self.mean_value = (1.25 - 0.25 * rank)[self.frequencies.argsort(descending=True).argsort()]

    def _frequencies(self) -> Float[Tensor, "feature"]:
        config = self.config
        weight = torch.arange(1, config.top + 1) ** -config.exponent
        size = torch.ones(config.top)
        size[self.levels[0]] = sum(config.share**level for level in range(config.depth + 1))
        low, high = 0.0, config.largest / float(weight.min())
        for _ in range(60):
            middle = (low + high) / 2
            total = (size * (middle * weight).clamp_max(config.largest)).sum()
            low, high = (middle, high) if total < config.active else (low, middle)
        p = torch.zeros(config.features)
        p[: config.top] = (low * weight).clamp_max(config.largest)
        for above, children in zip(self.levels, self.levels[1:], strict=False):
            p[children] = (p[above][:, None] * self.given).flatten()
        return p

    def sample(self, rows: int, seed: int) -> Sample:
        """Activations `[row d]` with the features they were made of `[row feature]`."""
        generator = torch.Generator().manual_seed((self.config.seed + 1) * 1_000_003 + seed)
        fires = self._fires(rows, generator)
        size = 1 + self.config.spread * torch.randn(fires.shape, generator=generator)
        values = fires * size.clamp_min(0.1) * self.mean_value
        for level in self.levels[1:]:
            above = self.parents[level]
            values[:, level] *= values[:, above] / self.mean_value[above]
        noise = self.config.noise * torch.randn(rows, self.config.d, generator=generator)
        return Sample(values @ self.features + self.offset + noise, values)

    def _fires(self, rows: int, generator: torch.Generator) -> Bool[Tensor, "row feature"]:
        config = self.config
        common = torch.randn(rows, int(self.group_of.max()) + 1, generator=generator)[:, self.group_of]
        own = torch.randn(rows, config.top, generator=generator)
        drawn = config.together**0.5 * common + (1 - config.together) ** 0.5 * own
        fires = torch.zeros(rows, config.features, dtype=torch.bool)
        fires[:, : config.top] = drawn < torch.special.ndtri(self.frequencies[: config.top].double()).float()
        ends = self.given.cumsum(0)
        for above, children in zip(self.levels, self.levels[1:], strict=False):
            chosen = torch.bucketize(torch.rand(rows, len(above), generator=generator), ends, right=True)
            is_child = chosen[:, :, None] == torch.arange(config.branches)
            fires[:, children] = (is_child & fires[:, above, None]).flatten(1)
        return fires


def batches(known: Known, batch: int, seed: int) -> Iterator[Float[Tensor, "row d"]]:
    """Activations without end, `batch` rows at a time; the same for the same seed."""
    number = 0
    while True:
        yield known.sample(batch, (seed + 1) * 10_000_019 + number).x
        number += 1


def spread_out(rows: Float[Tensor, "feature d"], rounds: int = 100, rate: float = 0.02) -> Float[Tensor, "feature d"]:
    """Unit rows pushed apart by gradient steps down the sum of their squared cosines."""
    rows = torch.nn.functional.normalize(rows, dim=1)
    for _ in range(rounds):
        cosine = (rows @ rows.T).fill_diagonal_(0)
        rows = torch.nn.functional.normalize(rows - rate * cosine @ rows, dim=1)
    return rows


def trees(config: WorldConfig) -> tuple[list[Int[Tensor, "level"]], Int[Tensor, "feature"]]:
    """The features of each level of the trees, and each feature's parent; roots are every second of the first ranks."""
    parents = torch.full((config.features,), -1)
    levels = [torch.arange(0, min(2 * config.trees, config.top), 2)]
    start = config.top
    for _ in range(config.depth if config.trees else 0):
        above = levels[-1].repeat_interleave(config.branches)
        levels.append(torch.arange(start, start + len(above)))
        parents[levels[-1]] = above
        start += len(above)
    return levels, parents


def given_parent(config: WorldConfig) -> Float[Tensor, "branch"]:
    """How often each child fires where its parent does: falling as 1 / sqrt(rank), `share` in all."""
    weight = torch.arange(1, config.branches + 1) ** -0.5
    return config.share * weight / weight.sum()
