"""Drift: does a score rise or fall in the course of a conversation?

    slope       least squares over the messages of a conversation, in score per message; the mean over conversations
    interval    95 %, conversations drawn with replacement; of a single conversation, its messages
    p           share of PERMUTATIONS in which the order of the messages, shuffled within each conversation, gives a slope at least as
                steep either way. Without drift every order is as likely, whatever the scores are like

A slope that is steep because one message stands out has a small interval and a large p; so both are told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...saes import UserError
from ...saes.drawn import drawn
from ...saes.statistics import middle

PERMUTATIONS = 2000
LEAST = 3


@dataclass(frozen=True)
class Drift:
    """Mean slope per message with its interval; `p` and the middle 95 % of the slopes of shuffled orders."""

    slope: float
    low: float
    high: float
    p: float
    shuffled_low: float
    shuffled_high: float
    conversations: int
    messages: int

    _repr_html_ = drawn

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)


def drift(conversations: Sequence[Sequence[float]], seed: int = 0) -> Drift:
    """The drift of the scores of each conversation's messages, in order.

    Conversations of fewer than LEAST messages are left out; UserError if none is left or a score is no number.
    """
    known = [torch.tensor(list(each), dtype=torch.float64) for each in conversations if len(each) >= LEAST]
    if not known or not all(each.isfinite().all() for each in known):
        raise UserError(
            f"expected a conversation of at least {LEAST} messages with finite scores; got {len(known)}; watch longer ones"
        )
    generator = torch.Generator().manual_seed(seed)
    own = torch.stack([slopes(each[None], torch.arange(len(each)))[0] for each in known])
    shuffled = torch.stack([_shuffled(each, generator) for each in known]).mean(0)
    drawn = _drawn(known[0], generator) if len(known) == 1 else own[_picks(len(own), generator)].mean(1)
    value = float(own.mean())
    low, high = middle(drawn[~drawn.isnan()])
    shuffled_low, shuffled_high = middle(shuffled)
    steep = int((shuffled.abs() >= abs(value) - 1e-12).sum())
    return Drift(
        value,
        min(low, value),
        max(high, value),
        (1 + steep) / (1 + PERMUTATIONS),
        shuffled_low,
        shuffled_high,
        len(known),
        sum(map(len, known)),
    )


def slopes(scores: Float[Tensor, "draw message"], places: Tensor) -> Float[Tensor, "draw"]:
    """Least-squares slope of each row of scores over `places` (`[message]` or `[draw message]`); NaN where all places are one."""
    at = places.double() - places.double().mean(-1, keepdim=True)
    return ((scores - scores.mean(-1, keepdim=True)) * at).sum(-1) / at.square().sum(-1)


def _shuffled(scores: Tensor, generator: torch.Generator) -> Float[Tensor, "permutation"]:
    order = torch.rand(PERMUTATIONS, len(scores), generator=generator).argsort(1)
    return slopes(scores[order], torch.arange(len(scores)))


def _picks(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(count, (PERMUTATIONS, count), generator=generator)


def _drawn(scores: Tensor, generator: torch.Generator) -> Float[Tensor, "draw"]:
    picks = _picks(len(scores), generator)
    return slopes(scores[picks], picks)
