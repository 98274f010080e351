"""Absorption, splitting and hedging, where it is known which feature is whose parent.

With matched latents (recovery.py), over pairs of a parent p and a child c that both have one, each pair counting the same:

    absorption   of the tokens on which c is active and its latent fires, the share on which p's latent is silent, although p is
                 active wherever c is: the child's latent has taken the parent's part over           (Chanin et al. 2024, arXiv 2409.14507)
    missed       of the tokens on which p is active and none of its children is, the share on which p's latent is silent: the control;
                 a parent that is silent as often there is not absorbed but badly found
    hedging      cosine of p's latent with c's direction, less that of p's own direction with it: how much of its children a
                 parent's latent holds, which happens where latents are too few    (Chanin et al. 2025, arXiv 2505.11756)
    carried      the same of c's latent and p's direction: what absorption writes into the decoder

Absorption and missed take only parents whose latent has a cosine of FOUND or more with them: a parent that was never found cannot be
absorbed; `parents_found` is their share. Splitting (one feature, several latents) is measured for all features: `split` is the
mean number of live latents at a cosine of NEAR or more of one feature, over the features that have any.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

FOUND = 0.5
NEAR = 0.7
LEAST = 10  # tokens that a pair must occur on


class FamilyCounts:
    """Sums over tokens for the pairs of parent and child whose features both have a matched latent."""

    def __init__(self, parents: Int[Tensor, "feature"], matched: Int[Tensor, "pair"]):
        place = torch.full((len(parents),), -1)
        place[matched] = torch.arange(len(matched))
        child = ((parents >= 0) & (place >= 0)).nonzero().squeeze(1)
        child = child[place[parents[child]] >= 0]
        self.child, self.parent = child, parents[child]
        self.child_at, self.parent_at = place[child], place[self.parent]
        self.heads = self.parent.unique()  # parents, each once
        self.heads_at = place[self.heads]
        self.parents = parents
        self.taken, self.silent = (torch.zeros(len(child), dtype=torch.float64) for _ in range(2))
        self.alone, self.missed = (torch.zeros(len(self.heads), dtype=torch.float64) for _ in range(2))

    def add(self, fires: Bool[Tensor, "row pair"], active: Bool[Tensor, "row feature"]) -> None:
        """Which matched latents fired on which tokens, and which features were active."""
        taken = active[:, self.child] & fires[:, self.child_at]
        self.taken += taken.double().sum(0)
        self.silent += (taken & ~fires[:, self.parent_at]).double().sum(0)
        has_parent = self.parents >= 0
        with_child = torch.zeros(len(active), len(self.parents))
        with_child.index_add_(1, self.parents[has_parent], active[:, has_parent].float())
        alone = active[:, self.heads] & ~(with_child[:, self.heads] > 0)
        self.alone += alone.double().sum(0)
        self.missed += (alone & ~fires[:, self.heads_at]).double().sum(0)


def family_numbers(
    counts: FamilyCounts,
    cosine: Float[Tensor, "pair"],
    with_features: Float[Tensor, "pair feature"],
    features: Float[Tensor, "feature d"],
) -> dict[str, float]:
    """The numbers of the module header; nan where there are no families. `with_features`: matched rows against all features."""
    own = torch.nn.functional.normalize(features, dim=1)
    between = (own[counts.parent] * own[counts.child]).sum(1)
    hedging = with_features[counts.parent_at, counts.child] - between
    carried = with_features[counts.child_at, counts.parent] - between
    found = cosine >= FOUND
    pairs = (counts.taken >= LEAST) & found[counts.parent_at]
    heads = (counts.alone >= LEAST) & found[counts.heads_at]
    return {
        "absorption": mean((counts.silent / counts.taken.clamp_min(1))[pairs]),
        "missed": mean((counts.missed / counts.alone.clamp_min(1))[heads]),
        "hedging": mean(hedging),
        "carried": mean(carried),
        "parents_found": mean(found[counts.heads_at].double()),
    }


def split(live: Float[Tensor, "live feature"]) -> float:
    """Mean number of live latents near a feature, of those features that have any; from cosines of decoder rows and features."""
    near = (live >= NEAR).sum(0)
    return mean(near[near > 0].double())


def mean(values: Tensor) -> float:
    """The mean; nan of nothing."""
    return float(values.mean()) if len(values) else float("nan")
