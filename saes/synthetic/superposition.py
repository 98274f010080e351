"""The toy model of superposition: features that a small network itself has squeezed into fewer dimensions (Elhage et al. 2022).

    s_i = 0 with probability 1 - p, else uniform in [0, 1]          h = W s          s' = relu(W^T h + b)
    loss = sum_i importance^i (s_i - s'_i)^2

trained by Adam; what a dictionary is shown is h, and what it should find are the columns of W that the model has kept (of length
KEPT or more). Where features are sparse the model keeps more of them than h has entries, with interference; where they are dense it
keeps only the most important ones, each with a dimension of its own.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .world import Sample

KEPT = 0.5


class Superposition:
    """A trained toy model: `features [feature d]` unit rows of what it kept, `parents` all -1; `W [d all]`, `b [all]`."""

    def __init__(
        self,
        features: int = 64,
        d: int = 16,
        active: float = 2.0,
        importance: float = 1.0,
        steps: int = 3000,
        seed: int = 0,
    ):
        """`active`: features that are active on a token on average; `importance`: of each feature relative to the one before."""
        self.p, self.seed = active / features, seed
        weight = importance ** torch.arange(features)
        self.W, self.b = train_toy(features, d, self.p, weight, steps, seed)
        length = self.W.norm(dim=0)
        self.kept = (length >= KEPT).nonzero().squeeze(1)
        self.features = torch.nn.functional.normalize(self.W[:, self.kept].T, dim=1)
        self.parents = torch.full((len(self.kept),), -1)

    def sample(self, rows: int, seed: int) -> Sample:
        """Hidden activations h `[row d]`, and how far each kept feature moves h along its own direction."""
        generator = torch.Generator().manual_seed((self.seed + 1) * 1_000_003 + seed)
        s = draw(rows, self.W.shape[1], self.p, generator)
        return Sample(s @ self.W.T, s[:, self.kept] * self.W[:, self.kept].norm(dim=0))


def draw(rows: int, features: int, p: float, generator: torch.Generator) -> Float[Tensor, "row feature"]:
    """Sparse features: uniform in [0, 1] with probability p, else 0."""
    size = torch.rand(rows, features, generator=generator)
    return size * (torch.rand(rows, features, generator=generator) < p)


def train_toy(
    features: int, d: int, p: float, weight: Float[Tensor, "feature"], steps: int, seed: int, batch: int = 1024
) -> tuple[Float[Tensor, "d feature"], Float[Tensor, "feature"]]:
    """W and b of the model in the module header; the rate falls linearly to zero from 1e-2."""
    generator = torch.Generator().manual_seed(3_000_000_019 + seed)  # not one that a dictionary may begin from
    W = (torch.randn(d, features, generator=generator) / d**0.5).requires_grad_()
    b = torch.zeros(features, requires_grad=True)
    optimizer = torch.optim.Adam([W, b], lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        s = draw(batch, features, p, generator)
        loss = (weight * (s - torch.relu(s @ W.T @ W + b)).square()).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return W.detach(), b.detach()
