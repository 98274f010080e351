"""Which tokens a dictionary is trained on, and answers for: the exclusion rule.

Language models park enormous activations on a few tokens: position 0 (the attention sink) and about one in a thousand of
the others. On smollm2-135m their residual norm is over a hundred times the median; kept in training they are all that a
squared error sees (variance explained .54 instead of .78 elsewhere after the same tokens). The rule:

    a token is left out if its position is below `drop_positions` (positions begin anew with each block or document), or its
    id is one of `drop_tokens` (BOS, EOS, padding, chat markers, wherever they stand), or it is massive: its norm at any
    site that the dictionary reads or writes exceeds `drop_norm` x the median norm there.

The limits are saved with the dictionary, and evaluation, statistics, splicing and tracing use the same ones. Where positions
or tokens are not known (a bare stream of tensors), that part does not apply.

Massive tokens may be kept instead (`massive` clip): training and the metrics of reconstruction then see them shortened to the
limit, in their direction. In the model such an activation is never replaced, since what the dictionary was trained on there is
not what the model computes: `mask` leaves massive tokens out in both cases, and so do splicing, tracing, statistics and probes.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Massive = Literal["drop", "clip"]
MASSIVE = ("drop", "clip")


class Reasons(NamedTuple):
    """Which tokens are special to the rule, and why; one token may be several of these. `massive` is by site."""

    position: Bool[Tensor, "token"]
    token: Bool[Tensor, "token"]
    massive: dict[str, Bool[Tensor, "token"]]

    @property
    def is_named(self) -> Bool[Tensor, "token"]:
        """Left out for its position or its id."""
        return self.position | self.token

    @property
    def is_massive(self) -> Bool[Tensor, "token"]:
        """Massive at some site."""
        return torch.stack([torch.zeros_like(self.position), *self.massive.values()]).any(0)

    @property
    def is_kept(self) -> Bool[Tensor, "token"]:
        """What the dictionary answers for as it is."""
        return ~(self.is_named | self.is_massive)


@dataclass(frozen=True)
class KeepRule:
    """Leading positions and token ids that are dropped, the largest norm at each site (none: no limit), and what is done with
    tokens beyond it."""

    drop_positions: int = 0
    max_norm: Mapping[str, float] = field(default_factory=dict)
    drop_tokens: tuple[int, ...] = ()
    massive: Massive = "drop"

    def mask(
        self,
        positions: Int[Tensor, "token"] | None,
        activations: Mapping[str, Float[Tensor, "token d"]],
        tokens: Int[Tensor, "token"] | None = None,
    ) -> Bool[Tensor, "token"]:
        """True for the tokens that the dictionary answers for as they are; `positions` or `tokens` None: they are not known."""
        return self.reasons_of(positions, activations, tokens).is_kept

    def reasons_of(
        self,
        positions: Int[Tensor, "token"] | None,
        activations: Mapping[str, Float[Tensor, "token d"]],
        tokens: Int[Tensor, "token"] | None = None,
    ) -> Reasons:
        """Why each token is left out or clipped."""
        limited = {site: row_norms(x) for site, x in activations.items() if site in self.max_norm}
        site, x = next(iter(activations.items()))
        return self.reasons(positions, limited or {site: x.new_zeros(len(x))}, tokens)

    def reasons(
        self,
        positions: Int[Tensor, "token"] | None,
        norms: Mapping[str, Float[Tensor, "token"]],
        tokens: Int[Tensor, "token"] | None = None,
    ) -> Reasons:
        """The same from the norms of the rows at each site, of at least one; a site without a limit counts for nothing."""
        some = next(iter(norms.values()))
        nowhere = torch.zeros(len(some), dtype=torch.bool, device=some.device)
        return Reasons(
            nowhere if positions is None else positions.to(some.device) < self.drop_positions,
            nowhere if tokens is None or not self.drop_tokens else _is_one_of(tokens.to(some.device), self.drop_tokens),
            {site: ~(norms[site] <= limit) for site, limit in self.max_norm.items() if site in norms},
        )

    def trained(self, reasons: Reasons) -> Bool[Tensor, "token"]:
        """True for the tokens that training sees, shortened by `clip` where they are massive."""
        return ~reasons.is_named if self.massive == "clip" else reasons.is_kept

    def clip(self, activations: Mapping[str, Float[Tensor, "token d"]]) -> Mapping[str, Float[Tensor, "token d"]]:
        """Rows longer than the limit of their site shortened to it, in their direction, in float32 or better.

        Other rows keep their values. The same mapping where massive tokens are dropped, or nothing is limited.
        """
        if self.massive != "clip" or not self.max_norm.keys() & activations.keys():
            return activations
        return {
            site: shortened(x, self.max_norm[site]) if site in self.max_norm else x for site, x in activations.items()
        }

    def counts(self, reasons: Reasons) -> dict[str, Any]:
        """How many tokens were left out by position, by id of those left, and by norm of those left (or clipped), per site."""
        left = ~reasons.is_named
        massive = {site: int((is_massive & left).sum()) for site, is_massive in reasons.massive.items()}
        return {
            "by_position": int(reasons.position.sum()),
            "by_token": int((reasons.token & ~reasons.position).sum()),
            "clipped" if self.massive == "clip" else "by_norm": massive,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "drop_positions": self.drop_positions,
            "drop_tokens": list(self.drop_tokens),
            "max_norm": dict(self.max_norm),
            "massive": self.massive,
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> KeepRule:
        """The rule that `to_dict` wrote; what is missing limits nothing. TypeError or ValueError for what is no rule."""
        tokens, massive = data.get("drop_tokens", ()), data.get("massive", "drop")
        if not isinstance(tokens, list | tuple):
            raise TypeError(f"drop_tokens must be a list of token ids, got {type(tokens).__name__}")
        ids = tuple(operator.index(token) for token in tokens)
        if ids and not 0 <= min(ids) <= max(ids) < 2**31:
            raise ValueError(f"token ids must be from 0 to 2^31 - 1, got {min(ids)} to {max(ids)}")
        if massive not in MASSIVE:
            raise ValueError(f"massive must be drop or clip, got {str(massive)[:40]!r}")
        norms = {site: float(limit) for site, limit in data.get("max_norm", {}).items()}
        return KeepRule(int(data.get("drop_positions", 0)), norms, ids, massive)


def fit_keep_rule(
    norms: Mapping[str, Float[Tensor, "token"]],
    positions: Int[Tensor, "token"] | None,
    drop_positions: int,
    ratio: float,
    tokens: Int[Tensor, "token"] | None = None,
    drop_tokens: tuple[int, ...] = (),
    massive: Massive = "drop",
) -> KeepRule:
    """The rule whose norm limits are `ratio` x the median over the tokens that position and id leave (0: no limits)."""
    named = KeepRule(drop_positions, {}, drop_tokens, massive)
    if not ratio:
        return named
    left = ~named.reasons(positions, norms, tokens).is_named
    limits = {site: ratio * float(rows[left].median()) for site, rows in norms.items()}
    return KeepRule(drop_positions, limits, drop_tokens, massive)


def added(counts: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Two results of `KeepRule.counts`, of different tokens, as one; {} is none."""
    return {
        name: added(counts.get(name, {}), value) if isinstance(value, Mapping) else counts.get(name, 0) + value
        for name, value in more.items()
    }


def shortened(x: Float[Tensor, "token d"], limit: float) -> Float[Tensor, "token d"]:
    """Rows of at most that norm: longer ones times limit / norm, in float32 or better."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x * (limit / row_norms(x)).clamp_max(1)[:, None]


def row_norms(x: Float[Tensor, "token d"]) -> Float[Tensor, "token"]:
    """Euclidean norm of each row, in float32 or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).norm(dim=1)


def _is_one_of(tokens: Int[Tensor, "token"], ids: tuple[int, ...]) -> Bool[Tensor, "token"]:
    return torch.isin(tokens.long(), torch.tensor(ids, device=tokens.device))
