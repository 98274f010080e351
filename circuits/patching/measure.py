"""The number that a set of removed edges changes, averaged over pairs of prompts.

With metrics, m = logits . direction before any soft-cap; without, KL(clean || patched) of the next token, in nats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .components import Wiring
from .pairs import Metric, Pair
from .patched import Outcome, run


class Measure(NamedTuple):
    """`measure`: removed edges [row receiver sender position] -> a number per row; `clean`: with none removed."""

    measure: Callable[[Tensor], Tensor]
    clean: float
    embeddings: list[Tensor]  # [token d], one for each pair


def build_measure(wiring: Wiring, pairs: list[Pair], metrics: list[Metric] | None) -> Measure:
    """Run the clean and the corrupted prompts once (without a corrupted one, removed writers are zero)."""
    cleans = [run(wiring, pair.clean) for pair in pairs]
    others = [
        torch.zeros_like(clean.outputs[:, 0]) if pair.corrupt is None else run(wiring, pair.corrupt).outputs[:, 0]
        for pair, clean in zip(pairs, cleans, strict=True)
    ]

    def value(place: int, outcome: Outcome) -> Float[Tensor, "row"]:
        if metrics is not None:
            return outcome.unembed.double() @ metrics[place].direction.double()
        truth = cleans[place].logits.double().log_softmax(-1)
        return (truth.exp() * (truth - outcome.logits.double().log_softmax(-1))).sum(-1)

    def measure(removed: Bool[Tensor, "row receiver sender position"]) -> Float[Tensor, "row"]:
        runs = (run(wiring, pair.clean, removed, other) for pair, other in zip(pairs, others, strict=True))
        return torch.stack([value(place, outcome) for place, outcome in enumerate(runs)]).mean(0)

    clean = torch.stack([value(place, outcome) for place, outcome in enumerate(cleans)]).mean()
    return Measure(measure, float(clean), [outcome.outputs[0, 0] for outcome in cleans])


def embedding_norms(embeddings: list[Tensor], positions: bool) -> Float[Tensor, "position"]:
    """Norms of embeddings [token d], one for each pair, averaged over pairs: by position, or of all positions together."""
    return torch.stack([e.norm(dim=-1) if positions else e.norm()[None] for e in embeddings]).mean(0)
