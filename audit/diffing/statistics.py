"""Of many latents at once: effect sizes with intervals, p values by permutation, and control of false discoveries.

Two models read the same documents, so each document gives a pair of numbers a latent, and documents, not tokens, are what is
independent. Were the models exchangeable, each document's difference could as well have had the other sign:

    p      = share of random sign flips of whole documents whose |sum of differences| is at least the observed one
    d      = (mean b - mean a) / sqrt((var a + var b) / 2), over documents (Cohen 1988, section 2.2); its interval by drawing documents
             with replacement
    q      = smallest false-discovery rate at which a test is a discovery (Benjamini and Hochberg 1995)

A latent drops out of the permutations once `enough` flips have reached it, with p = enough / flips by then, which is as valid as
running on (Besag and Clifford 1991): the thousands that changed nothing cost little, and the few that did get the many draws
that a small p needs. Of n documents with a difference no p can be below 2^(1 - n), so a latent that changes in too few is not tested;
how many they are does not depend on the signs, so leaving it out biases nothing.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...saes.statistics import middle

LEAST_DOCUMENTS = 6  # with a difference: 2^(1 - 6) = 0.03
ROUNDING = 1e-5  # of sums of products of float32
HELD = 2**23  # numbers of one batch of permutations


class Sizes(NamedTuple):
    """Cohen's d of each latent and its 95 % interval."""

    d: Float[Tensor, "latent"]
    low: Float[Tensor, "latent"]
    high: Float[Tensor, "latent"]


def differences(
    a: Float[Tensor, "document latent"], b: Float[Tensor, "document latent"]
) -> Float[Tensor, "document latent"]:
    """b - a, with 0 for what is no more than the rounding of float32: tiny differences of one sign would be discoveries too."""
    change = (b - a).double()
    return torch.where(change.abs() <= ROUNDING * (a.abs() + b.abs()), 0.0, change)


def sign_flip(
    change: Float[Tensor, "document latent"], seed: int, draws: int | None = None, enough: int = 20, fdr: float = 0.05
) -> Float[Tensor, "latent"]:
    """Two-sided p of each column, NaN where fewer than LEAST_DOCUMENTS documents differ.

    `draws` left out: as many as let one column alone be a discovery at `fdr`, and at least 10,000.
    """
    change = change.double()
    p = torch.full((change.shape[1],), torch.nan, dtype=torch.float64)
    live = ((change != 0).sum(0) >= LEAST_DOCUMENTS).nonzero().squeeze(1)
    draws = draws or max(10_000, math.ceil(2 * len(live) / fdr))
    observed = change.sum(0).abs() * (1 - 1e-9)  # a flip of all signs is as large, whatever the order of the sum
    reached = torch.zeros(change.shape[1], dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    done = 0
    while done < draws and len(live):
        count = min(1000 if not done else draws, max(64, HELD // len(live)), draws - done)
        signs = 2.0 * torch.randint(0, 2, (count, len(change)), generator=generator).double() - 1
        running = reached[live] + ((signs @ change[:, live]).abs() >= observed[live]).cumsum(0)
        is_over = running[-1] >= enough
        when = (running >= enough).int().argmax(0)[is_over]
        p[live[is_over]] = enough / (done + when + 1).double()
        reached[live], done = running[-1], done + count
        live = live[~is_over]
    p[live] = (1 + reached[live]).double() / (1 + done)
    return p


def benjamini_hochberg(p: Float[Tensor, "test"]) -> Float[Tensor, "test"]:
    """The q value of each p; NaN, which was not tested, stays NaN and counts for nothing."""
    tested = p.isfinite().nonzero().squeeze(1)
    q = torch.full_like(p, torch.nan)
    if not len(tested):
        return q
    order = tested[p[tested].argsort(stable=True)]
    scaled = p[order] * len(order) / torch.arange(1, len(order) + 1, dtype=p.dtype)
    q[order] = scaled.flip(0).cummin(0).values.flip(0).clamp_max(1)
    return q


def effect_sizes(
    a: Float[Tensor, "document latent"], b: Float[Tensor, "document latent"], seed: int, draws: int = 400
) -> Sizes:
    """Cohen's d of `b` against `a`; 0 where nothing differs, NaN with fewer than two documents."""
    documents = len(a)
    if documents < 2:
        return Sizes(*(torch.full((a.shape[1],), torch.nan, dtype=torch.float64) for _ in range(3)))
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(documents, (draws, documents), generator=generator)
    weights = torch.zeros(draws, documents, dtype=torch.float64)
    weights.scatter_add_(1, picks, torch.ones_like(picks, dtype=torch.float64))
    found: list[Tensor] = []
    for columns in torch.arange(a.shape[1]).split(max(1, HELD // draws)):
        own, other = a[:, columns].double(), b[:, columns].double()
        observed = standardised(torch.ones(1, documents, dtype=torch.float64), own, other)
        drawn = standardised(weights, own, other)
        found.append(torch.cat([observed, torch.stack(middle(drawn))]))
    return Sizes(*torch.cat(found, 1)) if found else Sizes(*torch.zeros(3, 0, dtype=torch.float64))


def standardised(
    weights: Float[Tensor, "draw document"], a: Float[Tensor, "document latent"], b: Float[Tensor, "document latent"]
) -> Float[Tensor, "draw latent"]:
    """Cohen's d with each document counted `weights` times; 0 where the means are equal."""
    count = weights.sum(1, keepdim=True)
    middle = (a.mean(0) + b.mean(0)) / 2  # squares about a point nearby keep their digits
    means, variances = [], []
    for values in (a - middle, b - middle):
        mean = weights @ values / count
        means.append(mean)
        variances.append((weights @ values.square() / count - mean.square()).clamp_min(0) * count / (count - 1))
    change, spread = means[1] - means[0], ((variances[0] + variances[1]) / 2).sqrt()
    return torch.where(change == 0, 0.0, change / spread.clamp_min(1e-12 + 1e-9 * change.abs()))
