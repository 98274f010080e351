"""A threshold with a stated false-alarm rate, and how sure that rate is.

Held-out items (harmless texts or chats, one score each) are split at random into two halves. The first sets the threshold:

    threshold   the ⌈(n + 1)(1 - rate)⌉-th smallest of its n scores; an item above it raises an alarm

so that a new item of the same kind raises one with probability at most `rate` (split conformal prediction: it is as likely to have any
rank among n + 1). The second half, which had no part in that, measures the rate, with a Clopper-Pearson interval of 95 %. Both hold
for items like the held-out ones and for no others. n must be at least 1 / rate - 1, or no rank is high enough: `needed` items in all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ...saes import UserError


@dataclass(frozen=True)
class Calibration:
    """A threshold, and the false alarms that it raised on `checked` items which did not set it (`low` to `high`: their rate)."""

    threshold: float
    rate: float
    set_by: int
    checked: int
    alarms: int
    low: float
    high: float
    sure_with: int  # items without an alarm after which the interval's upper end is at most `rate`

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {**asdict(self), "measured": self.alarms / self.checked}


def needed(rate: float) -> int:
    """Held-out items that `calibrate` asks for: enough to set the threshold in one half, and as many to check it."""
    if not 0 < rate < 1:
        raise UserError(f"expected a false-alarm rate between 0 and 1; got {rate}; 0.01 is one text in a hundred")
    return 2 * max(math.ceil(1 / rate - 1 - 1e-9), 1)


def calibrate(scores: Sequence[float], rate: float, seed: int = 0) -> Calibration:
    """The threshold for scores of held-out items; UserError if they are too few for the rate, or one is no number."""
    least = needed(rate)
    if len(scores) < least:
        raise UserError(
            f"expected at least {least} held-out texts or chats for a false-alarm rate of {rate:g}; got {len(scores)}; "
            f"give more, or a rate of {2 / max(len(scores) + 1, 3):.2g} or above"
        )
    x = torch.tensor(scores, dtype=torch.float64)
    if not x.isfinite().all():
        raise UserError("expected a finite score of every held-out item; got NaN or infinity; leave such items out")
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))]
    first, second = x[: (len(x) + 1) // 2], x[(len(x) + 1) // 2 :]
    rank = math.ceil((len(first) + 1) * (1 - rate) - 1e-9)
    threshold = float(first.sort().values[rank - 1])
    alarms = int((second > threshold).sum())
    low, high = clopper_pearson(alarms, len(second))
    return Calibration(
        threshold, rate, len(first), len(second), alarms, low, high, math.ceil(math.log(0.025) / math.log1p(-rate))
    )


def clopper_pearson(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a binomial rate: the rates under which so many hits, or as few, are not rarer than (1 - level) / 2."""
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else _solve(lambda p: 1 - _at_most(hits - 1, n, p), tail)
    high = 1.0 if hits == n else _solve(lambda p: 1 - _at_most(hits, n, p), 1 - tail)
    return low, high


def _at_most(hits: int, n: int, p: float) -> float:
    """P(at most `hits` of `n`) at rate p in (0, 1)."""
    logs = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log1p(-p)
        for k in range(hits + 1)
    ]
    return min(math.fsum(math.exp(value) for value in logs), 1.0)


def _solve(rising: Any, value: float) -> float:
    """Where a rising function of p in (0, 1) reaches `value`."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < value else (low, middle)
    return (low + high) / 2
