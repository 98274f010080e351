"""A matching in numbers: shares matched both ways, histograms, what chance gives, and its columns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...saes import FeatureStore
from ...saes.latents.across.matching import Matching, Side
from ..text import number

LEVELS = (0.9, 0.7, 0.5)
BINS = 40
PARTS = ("score", "match", "mutual", "pair", "pair_score")


def summary(found: Matching, a: FeatureStore, b: FeatureStore) -> dict[str, Any]:
    """The matching as the page shows it; latents that never fire are left out of every number."""
    alive = a.count > 0, b.count > 0
    mutual = _mutual(found) & alive[0] & alive[1][found.a.best[:, 0].clamp_min(0)]
    pairs = (found.pair_a >= 0) & alive[0] & alive[1][found.pair_a.clamp_min(0)]
    scores = _pair_score(found)[pairs]
    return {
        "edges": [place / BINS for place in range(BINS + 1)],
        "a": _shares(found.a, alive[0]),
        "b": _shares(found.b, alive[1]),
        "mutual": int(mutual.sum()),
        "mutual_above": [int((mutual & (_first(found.a) > level)).sum()) for level in LEVELS],
        "pairs": int(pairs.sum()),
        "pairs_above": [int((scores > level).sum()) for level in LEVELS],
        "floor": {
            f"q{share}": number(float(found.floor.quantile(share / 100)), 3) if len(found.floor) else None
            for share in (50, 95, 99)
        },
        "sample": len(found.floor),
    }


def _shares(side: Side, alive: Tensor) -> dict[str, Any]:
    """Of the latents that fire: how many, how many have a match above each level, the histogram of the best scores."""
    score = _first(side)[alive].clamp(0, 1)
    counts = torch.histc(score, BINS, 0.0, 1.0) if len(score) else torch.zeros(BINS)
    return {
        "latents": int(alive.sum()),
        "above": [int((score > level).sum()) for level in LEVELS],
        "median": number(float(score.median()), 3) if len(score) else None,
        "counts": [int(count) for count in counts],
    }


def _first(side: Side) -> Tensor:
    """The best score of each latent, 0 where it has no partner."""
    if not side.score.shape[1]:
        return side.score.new_zeros(len(side.score))
    return side.score[:, 0].masked_fill(side.best[:, 0] < 0, 0.0)


def _mutual(found: Matching) -> Tensor:
    """Whether each latent of A is the best partner of its best partner."""
    best = found.a.best[:, 0]
    return (best >= 0) & (found.b.best[best.clamp_min(0), 0] == torch.arange(len(best)))


def _pair_score(found: Matching) -> Tensor:
    """The score of each latent of A with its one-to-one partner, which is a candidate of either side; -inf without one."""
    from_a = found.a.score.masked_fill(found.a.best != found.pair_a[:, None], float("-inf")).amax(1)
    from_b = found.b.score.masked_fill(found.b.best != found.pair_b[:, None], float("-inf")).amax(1)
    theirs = from_b[found.pair_a.clamp_min(0)]
    return torch.maximum(from_a, theirs).masked_fill(found.pair_a < 0, float("-inf"))


def match_values(found: Matching, part: str) -> Tensor:
    """One part of a matching as numbers, by latent of A."""
    if part == "mutual":
        return _mutual(found).float()
    best = found.pair_a if part.startswith("pair") else found.a.best[:, 0]
    values = {"score": found.a.score[:, 0], "pair_score": _pair_score(found)}.get(part, best.float())
    return values.masked_fill(best < 0, float("nan"))
