"""How right a judge was: balanced accuracy, AUC, and intervals over documents.

    balanced accuracy   (share of positives judged 1 + share of negatives judged 0) / 2; chance is 0.5 whatever the judge prefers
    AUC                 P(probability of a positive > that of a negative) + half of P(equal); where every item has a probability

An answer that could not be read is an item judged by a coin (half right): it is counted in `failures`, moves the number toward
chance, and is never left out. Intervals are 95 %, whole documents drawn with replacement.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...saes.statistics import middle, redrawn

DRAWS = 1000
CHANCE = 0.5


class Answer(NamedTuple):
    """A judged item: the truth, the verdict (None: not readable), the probability of 1 where there is one, its document."""

    is_true: bool
    verdict: bool | None
    probability: float | None
    document: int


class Score(NamedTuple):
    """How right a judge was on `n` items. `auc` and its interval are None without probabilities."""

    value: float
    low: float
    high: float
    auc: float | None
    auc_low: float | None
    auc_high: float | None
    n: int
    positives: int
    documents: int
    failures: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return self._asdict()


def score(answers: Sequence[Answer], seed: int = 0) -> Score | None:
    """The score of some answers; None unless there are positives and negatives."""
    truth = torch.tensor([each.is_true for each in answers], dtype=torch.bool)
    if not len(answers) or not truth.any() or truth.all():
        return None
    right = torch.tensor(
        [0.5 if each.verdict is None else float(each.verdict == each.is_true) for each in answers], dtype=torch.float64
    )
    documents, index = torch.tensor([each.document for each in answers]).unique(return_inverse=True)
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(documents), (DRAWS, len(documents)), generator=generator)
    drawn = torch.zeros(DRAWS, len(documents), dtype=torch.float64).scatter_add_(
        1, picks, torch.ones(DRAWS, len(documents), dtype=torch.float64)
    )[:, index]
    whole = torch.ones(1, len(answers), dtype=torch.float64)
    value, interval = _with_interval(lambda weight: balanced(weight, right, truth), whole, drawn)
    chances = [each.probability for each in answers]
    auc, auc_interval = None, (None, None)
    if all(chance is not None for chance in chances):
        known = torch.tensor(chances, dtype=torch.float64)
        auc, auc_interval = _with_interval(lambda weight: ranked(weight, known, truth), whole, drawn)
    failures = sum(each.verdict is None for each in answers)
    return Score(
        value, *interval, auc, *auc_interval, len(answers), int(truth.sum()), len(documents), failures
    )  # fmt: skip


def balanced(weight: Tensor, right: Tensor, truth: Tensor) -> Tensor:
    """Balanced accuracy under each row of `weight [draw item]`; NaN where a kind is missing."""
    kinds = [weight[:, kind] @ right[kind] / weight[:, kind].sum(1) for kind in (truth, ~truth)]
    return (kinds[0] + kinds[1]) / 2


def ranked(weight: Tensor, chance: Tensor, truth: Tensor) -> Tensor:
    """AUC under each row of `weight [draw item]`."""
    above = chance[truth][:, None] - chance[~truth][None]
    wins = (above > 0).double() + (above == 0).double() / 2
    one, other = weight[:, truth], weight[:, ~truth]
    return ((one @ wins) * other).sum(1) / (one.sum(1) * other.sum(1))


def _with_interval(statistic: Any, whole: Tensor, drawn: Tensor) -> tuple[float, tuple[float, float]]:
    value, many = float(statistic(whole)[0]), statistic(drawn)
    return value, interval_around(value, many[~many.isnan()])


def interval_around(value: float, drawn: Tensor) -> tuple[float, float]:
    """The middle 95 % of what was drawn, widened to hold the value itself."""
    if not len(drawn):
        return value, value
    low, high = middle(drawn)
    return min(low, value), max(high, value)


def mean_with_interval(values: Sequence[float], seed: int = 0) -> dict[str, float | int | None]:
    """Mean over latents, its 95 % interval (latents drawn with replacement), and how many there were."""
    if not values:
        return {"mean": None, "low": None, "high": None, "n": 0}
    x = torch.tensor(values, dtype=torch.float64)
    low, high = interval_around(float(x.mean()), redrawn(x[:, None], seed, DRAWS)[:, 0] / len(x))
    return {"mean": float(x.mean()), "low": low, "high": high, "n": len(x)}


def rounded(value: Any) -> Any:
    """JSON data with floats to four places; what is not finite becomes None."""
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else value
