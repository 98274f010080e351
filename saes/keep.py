"""Which tokens a dictionary is trained on, and answers for: the exclusion rule.

Language models park enormous activations on a few tokens: position 0 (the attention sink) and about one in a thousand of
the others. On smollm2-135m their residual norm is over a hundred times the median; kept in training they are all that a
squared error sees (variance explained .54 instead of .78 elsewhere after the same tokens). The rule:

    a token is left out if its position is below `drop_positions`, or its norm at any site that the dictionary reads or
    writes exceeds `drop_norm` x the median norm there.

The limits are saved with the dictionary, and evaluation, statistics, splicing and tracing use the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class KeepRule:
    """Leading positions that are dropped, and the largest norm that is kept at each site (none: no limit)."""

    drop_positions: int = 0
    max_norm: Mapping[str, float] = field(default_factory=dict)

    def mask(
        self, positions: Int[Tensor, "token"] | None, activations: Mapping[str, Float[Tensor, "token d"]]
    ) -> Bool[Tensor, "token"]:
        """True for the tokens that the rule keeps. `positions` None means that positions are not known."""
        some = next(iter(activations.values()))
        kept = torch.ones(len(some), dtype=torch.bool, device=some.device)
        if positions is not None:
            kept &= positions.to(some.device) >= self.drop_positions
        for site, limit in self.max_norm.items():
            if site in activations:
                kept &= row_norms(activations[site]) <= limit
        return kept

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {"drop_positions": self.drop_positions, "max_norm": dict(self.max_norm)}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> KeepRule:
        """The rule that `to_dict` wrote; what is missing limits nothing."""
        return KeepRule(int(data.get("drop_positions", 0)), {k: float(v) for k, v in data.get("max_norm", {}).items()})


def fit_keep_rule(
    norms: Mapping[str, Float[Tensor, "token"]],
    positions: Int[Tensor, "token"] | None,
    drop_positions: int,
    ratio: float,
) -> KeepRule:
    """The rule whose norm limits are `ratio` x the median over the tokens past the dropped positions (0: no limits)."""
    if not ratio:
        return KeepRule(drop_positions)
    later = slice(None) if positions is None else positions >= drop_positions
    return KeepRule(drop_positions, {site: ratio * float(rows[later].median()) for site, rows in norms.items()})


def row_norms(x: Float[Tensor, "token d"]) -> Float[Tensor, "token"]:
    """Euclidean norm of each row, in float32 or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).norm(dim=1)
