"""Change of the mean activation of each latent under one dictionary, on the same texts (the first step of Wang et al. 2025, arXiv
2506.19823: what fine-tuning turned up or down).

    change = mean over documents of (mean activation in B - mean activation in A), over the tokens of the document
    score  = change times the length of the decoder row: how much more is written, comparable between latents

With Cohen's d over documents and its interval, p by sign flips of whole documents, q over latents (statistics.py). A dictionary of A
describes A better than B; so a change says that the latent reads something else in B, not yet that B has a new concept.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...saes import Shards
from .reading import ByDocument, Reading, kept_pairs
from .statistics import benjamini_hochberg, differences, effect_sizes, sign_flip

Columns = dict[str, Tensor]


def document_means(
    reading: Reading, shards: Shards, rows: Bool[Tensor, "row"]
) -> tuple[Float[Tensor, "document latent"], Float[Tensor, "document latent"], Float[Tensor, "side latent"]]:
    """Mean activation of each latent in each document, in A and in B, and the share of tokens on which it fires in each."""
    count = len(shards.documents[rows].unique())
    sums = [ByDocument(count, reading.latents) for _ in range(2)]
    tokens, fired = torch.zeros(count, dtype=torch.float64), torch.zeros(2, reading.latents, dtype=torch.float64)
    for pair in kept_pairs(reading, shards, rows):
        tokens += torch.bincount(pair.documents, minlength=count)
        for side, codes in enumerate(reading.encode(pair.x_a, pair.x_b)):
            sums[side].add(pair.documents, codes.indices, codes.values)
            fired[side].index_add_(0, codes.indices.flatten(), (codes.values != 0).double().flatten())
    a, b = (own.table / tokens.clamp_min(1)[:, None] for own in sums)
    return a, b, fired / tokens.sum().clamp_min(1)


def changed_means(reading: Reading, shards: Shards, rows: Bool[Tensor, "row"], seed: int, fdr: float) -> Columns:
    """Every number of each latent, on `rows` of the joined Shards."""
    a, b, density = document_means(reading, shards, rows)
    return tested(a, b, reading.written[1].double().norm(dim=1), density.mean(0), seed, fdr)


def tested(
    a: Float[Tensor, "document latent"],
    b: Float[Tensor, "document latent"],
    lengths: Float[Tensor, "latent"],
    density: Float[Tensor, "latent"],
    seed: int,
    fdr: float,
) -> Columns:
    """The columns of a Diff from each document's means in A and B."""
    sizes, p = effect_sizes(a, b, seed), sign_flip(differences(a, b), seed, fdr=fdr)
    q = benjamini_hochberg(p)
    change = differences(a, b).mean(0)
    return {
        "mean_a": a.mean(0),
        "mean_b": b.mean(0),
        "change": change,
        "density": density,
        "d": sizes.d,
        "d_low": sizes.low,
        "d_high": sizes.high,
        "p": p,
        "q": q,
        "score": change * lengths,
        "is_found": q <= fdr,
    }
