"""Pairs of what is read and what is to be written, and the mean and scale of each site that they are centred and scaled by.

Scale is the root mean square of a site's centred entries, so training sees inputs of unit variance per dimension. Several sites
stand side by side in one matrix (layout.py), each with its own mean and scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .fold import Scaling
from .layout import Layout, columns

MEDIAN_ROWS = 32_768  # rows that the geometric median is fitted on


class Pair(NamedTuple):
    """What is read and what is to be written, of the same tokens, sites side by side; one tensor twice if they are the same."""

    x: Float[Tensor, "token d_in"]
    y: Float[Tensor, "token d_out"]


def paired(layout: Layout, activations: Mapping[str, Tensor]) -> Pair:
    """What is read and written of these activations, in float32."""
    x = layout.flat(activations, layout.reads).float()
    return Pair(x, x if layout.writes == layout.reads else layout.flat(activations, layout.writes).float())


def fit_scaling(pairs: Iterable[Pair], center: str, layout: Layout) -> Scaling:
    """Mean (or geometric median) and root mean square of each site, accumulated in float64."""
    totals: list[Tensor] = []
    count = 0
    sample: list[Pair] = []
    for pair in pairs:
        parts = [part for side in pair for part in (side.double().sum(0), side.double().square().sum(0))]
        totals = parts if not totals else [total + part for total, part in zip(totals, parts, strict=True)]
        count += len(pair.x)
        sample += [pair] if center == "median" and sum(len(one.x) for one in sample) < MEDIAN_ROWS else []
    sums, squares = totals[0::2], totals[1::2]
    means = [total / count for total in sums]
    if center == "median":
        means = [geometric_median(torch.cat(side).double()) for side in zip(*sample, strict=True)]
    if center == "none":
        means = [torch.zeros_like(total) for total in sums]
    # mean (x - m)^2 = mean x^2 - 2 m mean x + m^2, for the centre m that was chosen
    around = [
        square / count - 2 * mean * total / count + mean.square()
        for square, mean, total in zip(squares, means, sums, strict=True)
    ]
    scale_in, scale_out = (_scales(one, of) for one, of in zip(around, (layout.reads, layout.writes), strict=True))
    if layout.is_shared and not layout.config.is_sae:
        # One pair of matrices serves all sites only where written and read scales have one ratio.
        scale_out = [one * sum(scale_out) / sum(scale_in) for one in scale_in]
    return Scaling(
        means[0].float(), _by_column(scale_in, layout.reads), means[1].float(), _by_column(scale_out, layout.writes)
    )


def _scales(variance: Float[Tensor, "d"], widths: Mapping[str, int]) -> list[float]:
    return [max(float(variance[site].clamp_min(0).mean().sqrt()), 1e-12) for site in columns(widths)]


def _by_column(scales: list[float], widths: Mapping[str, int]) -> float | Float[Tensor, "d"]:
    """One number for one site; else each site's number at all its columns."""
    if len(scales) == 1:
        return scales[0]
    return torch.cat([torch.full((width,), scale) for scale, width in zip(scales, widths.values(), strict=True)])


def geometric_median(x: Float[Tensor, "row d"], rounds: int = 100) -> Float[Tensor, "d"]:
    """The point with the least summed distance to the rows, by Weiszfeld's iteration from the mean (Vardi and Zhang 2000, eq. 2.6)."""
    point = x.mean(0)
    for _ in range(rounds):
        weight = 1 / (x - point).norm(dim=1).clamp_min(1e-12)
        moved = (weight @ x) / weight.sum()
        if (moved - point).norm() <= 1e-9 * moved.norm().clamp_min(1e-30):
            return moved
        point = moved
    return point
