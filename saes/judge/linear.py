"""What a linear map explains, as a yardstick: its fraction of variance unexplained on the evaluated rows, fitted on training rows.

    an SAE or a crosscoder      the best map of rank k (PCA), with several sites on columns of equal variance a site
    a transcoder                least squares from what is read to what is written, with a ridge of 1e-6 of the mean variance
    cross_layer                 least squares for each written site from the sites up to it; none where it writes what it reads
    shared                      the same for each site by itself; the mean over the sites

Moments are of the rows as training saw them (keep.py) less the first piece's mean, so that large means cost no digits. The joint
moments of several sites take d_in (d_in + d_out) numbers: beyond WIDEST there is no yardstick (None).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..dictionary import Dictionary
from ..errors import UserError
from ..layout import columns
from ..shards.folder import Shards
from .chunks import CHUNK, chunks

WIDEST = 2**27  # numbers: 1 GiB in float64


class Moments(NamedTuple):
    """Over the rows: count, means, covariances of x with itself and with y (None: too wide), variance of each entry of y; in float64."""

    count: int
    mean_x: Float[Tensor, "d_in"]
    mean_y: Float[Tensor, "d_out"]
    cov_xx: Float[Tensor, "d_in d_in"] | None
    cov_xy: Float[Tensor, "d_in d_out"] | None
    var_y: Float[Tensor, "d_out"]


@torch.no_grad()
def moments(dictionary: Dictionary, shards: Shards, rows: Bool[Tensor, "row"]) -> list[Moments]:
    """Moments of all sites side by side, or of each pair of sites of a shared dictionary.

    UserError where the training rule keeps fewer than two rows, or rows that do not differ.
    """
    layout = dictionary.layout
    pairs = list(zip(layout.reads, layout.writes, strict=True)) if layout.is_shared else [None]
    sums = [Sums(is_wide(dictionary)) for _ in pairs]
    count = 0
    rule = dictionary.keep_rule
    for piece in chunks(dictionary, shards, rows, CHUNK):
        part, kept = rule.clip(piece.part), rule.trained(piece.reasons)
        if not kept.any():
            continue
        count += int(kept.sum())
        for pair, one in zip(pairs, sums, strict=True):
            x = part[pair[0]] if pair else layout.flat(part, layout.reads)
            y = part[pair[1]] if pair else layout.flat(part, layout.writes)
            one.add(x[kept], y[kept])
    if count < 2 or not all(one.varies(count, layout.writes) for one in sums):
        raise UserError(
            f"expected rows that differ, to evaluate on; the training rule keeps {count} of {int(rows.sum())}; cache more text"
        )
    return [one.moments(count) for one in sums]


def is_wide(dictionary: Dictionary) -> bool:
    """Whether the covariances of its sites are too many numbers to hold."""
    own = dictionary
    return not own.is_single and own.d_in * (own.d_in + own.d_out) > WIDEST


class Sums:
    """Running sums of products of rows less the first piece's mean."""

    def __init__(self, is_wide: bool):
        self.is_wide, self.shift = is_wide, (torch.zeros(()), torch.zeros(()))
        self.totals: list[Tensor] = []

    def add(self, x: Float[Tensor, "row d_in"], y: Float[Tensor, "row d_out"]) -> None:
        """Rows of what is read and what is written."""
        if not self.totals:
            self.shift = x.mean(0), y.mean(0)
        x, y = x - self.shift[0], y - self.shift[1]
        products = [] if self.is_wide else [(x.T @ x).double(), (x.T @ y).double()]
        new = [x.double().sum(0), y.double().sum(0), y.double().square().sum(0), *products]
        self.totals = [a + b for a, b in zip(self.totals, new, strict=True)] if self.totals else new

    def varies(self, count: int, writes: dict[str, int]) -> bool:
        """Whether every written site has rows that differ."""
        if not self.totals:
            return False
        spread = self.totals[2] - self.totals[1].square() / count
        parts = [spread] if sum(writes.values()) != len(spread) else [spread[site] for site in columns(writes)]
        return all(bool(part.sum() > 0) for part in parts)

    def moments(self, count: int) -> Moments:
        """Means and covariances."""
        mx, my, squares, *products = [total / count for total in self.totals]
        covs = [None, None] if not products else [products[0] - torch.outer(mx, mx), products[1] - torch.outer(mx, my)]
        return Moments(count, self.shift[0] + mx, self.shift[1] + my, covs[0], covs[1], squares - my.square())


def linear_fvu(dictionary: Dictionary, fit: list[Moments], test: list[Moments]) -> float | None:
    """The yardstick of the module header; None where there is none."""
    found = [_one(dictionary, *pair) for pair in zip(fit, test, strict=True)]
    numbers = [value for value in found if value is not None]
    return sum(numbers) / len(numbers) if numbers else None


def _one(dictionary: Dictionary, fit: Moments, test: Moments) -> float | None:
    layout, config = dictionary.layout, dictionary.config
    if fit.cov_xx is None or (config.across == "cross_layer" and not config.is_transcoder):
        return None
    if not config.is_transcoder:
        scale = torch.ones(()) if config.is_sae else _scale(fit, list(layout.writes.values()))
        basis = torch.linalg.eigh(fit.cov_xx / torch.outer(scale, scale) if scale.ndim else fit.cov_xx).eigenvectors[
            :, -config.k :
        ]
        weight = basis @ basis.T
        weight = scale[None] * weight / scale[:, None] if scale.ndim else weight
        sites = columns(layout.writes) if not layout.is_shared else [slice(None)]
        return sum(_left(weight[:, site], fit, test, slice(None), site) for site in sites) / len(sites)
    sites = columns(layout.writes) if not layout.is_shared else [slice(None)]
    reads = [slice(None)] * len(sites)
    if config.across == "cross_layer":
        reads = [slice(0, site.stop) for site in columns(layout.reads)]
    return sum(_left(_least_squares(fit, *pair), fit, test, *pair) for pair in zip(reads, sites, strict=True)) / len(
        sites
    )


def _scale(fit: Moments, widths: list[int]) -> Float[Tensor, "d_in"]:
    """Of each column the root mean square deviation of its site."""
    parts = fit.var_y.split(widths)
    return torch.cat([part.mean().sqrt().expand_as(part) for part in parts])


def _least_squares(fit: Moments, read: slice, write: slice) -> Float[Tensor, "d_in d_out"]:
    assert fit.cov_xx is not None and fit.cov_xy is not None
    cov = fit.cov_xx[read, read]
    ridge = 1e-6 * cov.diagonal().mean() * torch.eye(len(cov), dtype=cov.dtype)
    return torch.linalg.solve(cov + ridge, fit.cov_xy[read, write])


def _left(weight: Float[Tensor, "d_in d_out"], fit: Moments, test: Moments, read: slice, write: slice) -> float:
    """The error of y ~ mean_y + (x - mean_x) weight on the test rows over their variance, from their own moments."""
    assert test.cov_xx is not None and test.cov_xy is not None
    cov_xx, cov_xy, var_y = test.cov_xx[read, read], test.cov_xy[read, write], test.var_y[write].sum()
    offset = (test.mean_y - fit.mean_y)[write] - (test.mean_x - fit.mean_x)[read] @ weight
    error = var_y - 2 * (cov_xy * weight).sum() + (weight * (cov_xx @ weight)).sum() + offset.square().sum()
    return float(error / var_y)
