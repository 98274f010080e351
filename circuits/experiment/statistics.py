"""Do predictions agree with measurements? Three numbers, each with an interval from resampling.

    spearman            rank correlation: does the graph order effects rightly?              1 is perfect, 0 chance
    cosine              p . m / |p| |m|: are they proportional, signs included?               1 is perfect, scale-free
    normalised error    |m - p|^2 / |m|^2: is their size right too?                             0 is perfect, 1 as bad as predicting 0

Intervals are 95 % bootstrap intervals (resampling the items, percentile method): they say how much the numbers depend on
which features were drawn, not whether other prompts would give them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...saes.errors import UserError

RESAMPLES = 1000
Interval = tuple[float, float]


@dataclass(frozen=True)
class Agreement:
    """Predicted against measured over `count` items; intervals are 95 %."""

    count: int
    spearman: float
    spearman_interval: Interval
    cosine: float
    cosine_interval: Interval
    error: float
    error_interval: Interval

    def __str__(self) -> str:
        named = (
            ("Spearman", self.spearman, self.spearman_interval),
            ("cosine", self.cosine, self.cosine_interval),
            ("normalised error", self.error, self.error_interval),
        )
        return ", ".join(f"{name} {value:.2f} [{low:.2f}, {high:.2f}]" for name, value, (low, high) in named)


def agreement(
    predicted: Float[Tensor, "item"], measured: Float[Tensor, "item"], generator: torch.Generator
) -> Agreement:
    """All three numbers; the same resampled items serve all of them."""
    draws = torch.randint(len(predicted), (RESAMPLES, len(predicted)), generator=generator)
    numbers: list[Any] = []
    for statistic in (_spearman, _cosine, _error):
        values = statistic(predicted[draws], measured[draws]).sort().values
        low, high = values[[int(0.025 * RESAMPLES), int(0.975 * RESAMPLES)]].tolist()
        numbers += [float(statistic(predicted, measured)), (low, high)]
    return Agreement(len(predicted), *numbers)


def spearman(a: Float[Tensor, "item"], b: Float[Tensor, "item"]) -> float:
    """Rank correlation; ties share their mean rank. 0 when one side is constant."""
    return float(_spearman(a, b))


def cosine(predicted: Float[Tensor, "item"], measured: Float[Tensor, "item"]) -> float:
    """Cosine of the two vectors; 0 when one is zero."""
    return float(_cosine(predicted, measured))


def normalised_error(predicted: Float[Tensor, "item"], measured: Float[Tensor, "item"]) -> float:
    """|measured - predicted|^2 / |measured|^2; infinite when nothing was measured but something predicted."""
    return float(_error(predicted, measured))


def _spearman(a: Float[Tensor, "*draw item"], b: Float[Tensor, "*draw item"]) -> Float[Tensor, "*draw"]:
    ranks = [_ranks(side) for side in (a, b)]
    return _cosine(*(rank - rank.mean(-1, keepdim=True) for rank in ranks))


def _ranks(x: Float[Tensor, "*draw item"]) -> Float[Tensor, "*draw item"]:
    """How many are less, plus half of those that are equal; a constant off from the usual ranks."""
    x = x.contiguous()
    order = x.sort(-1).values
    return (torch.searchsorted(order, x) + torch.searchsorted(order, x, right=True)).double() / 2


def _cosine(p: Float[Tensor, "*draw item"], m: Float[Tensor, "*draw item"]) -> Float[Tensor, "*draw"]:
    size = p.double().norm(dim=-1) * m.double().norm(dim=-1)
    return torch.where(size > 0, (p.double() * m.double()).sum(-1) / size.clamp_min(1e-300), 0.0)


def _error(p: Float[Tensor, "*draw item"], m: Float[Tensor, "*draw item"]) -> Float[Tensor, "*draw"]:
    away = (m.double() - p.double()).square().sum(-1)
    return torch.where(away > 0, away / m.double().square().sum(-1), 0.0)


def auroc(scores: Float[Tensor, "item"], truth: Bool[Tensor, "item"]) -> float:
    """The chance that a true item scores above a false one, ties counting half: (U - P(P+1)/2) / (P N) from mean ranks."""
    positive, negative = int(truth.sum()), int((~truth).sum())
    if not positive or not negative:
        raise UserError(
            f"expected both true and false items; got {positive} true of {len(scores)}; pass all candidates"
        )
    _, place, counts = scores.double().unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[place]
    return (float(ranks[truth].sum()) - positive * (positive + 1) / 2) / (positive * negative)
