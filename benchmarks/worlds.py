"""Activations from a known dictionary, so that what was found can be compared with what is there.

n_true unit-norm features in d dimensions (standard normal rows scaled to length 1), a bias of norm 2, firing probabilities
p_i = min(c (i + 1)^-0.7, 0.4) with c such that `active` fire on average, amplitudes max(1 + 0.25 N(0, 1), 0.1), noise 0.02.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class World(NamedTuple):
    """True features `[n_true d]`, the bias `[d]`, and how often each feature fires `[n_true]`."""

    features: Tensor
    bias: Tensor
    p: Tensor

    def sample(self, tokens: int, seed: int) -> Tensor:
        """Activations `[token d]`."""
        generator = torch.Generator().manual_seed(seed)
        shape = (tokens, len(self.p))
        fires = torch.rand(shape, generator=generator) < self.p
        amplitude = (1 + 0.25 * torch.randn(shape, generator=generator)).clamp_min(0.1)
        noise = 0.02 * torch.randn(tokens, self.features.shape[1], generator=generator)
        return (fires * amplitude) @ self.features + self.bias + noise

    def stream(self, tokens: int, batch: int, seed: int) -> Iterator[Tensor]:
        """Fresh batches, one seed each."""
        for number in range(tokens // batch):
            yield self.sample(batch, seed * 1_000_000 + number + 1)


def make_world(seed: int, d: int = 128, n_true: int = 512, active: float = 10.0) -> World:
    """Draw a world."""
    generator = torch.Generator().manual_seed(1000 + seed)
    features = torch.nn.functional.normalize(torch.randn(n_true, d, generator=generator), dim=1)
    bias = torch.randn(d, generator=generator)
    decay = torch.arange(1, n_true + 1) ** -0.7
    low, high = 0.0, float(n_true)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (middle * decay).clamp_max(0.4).sum() < active else (low, middle)
    return World(features, 2 * bias / bias.norm(), (low * decay).clamp_max(0.4))


def recovery(world: World, W_dec: Tensor) -> tuple[float, float]:
    """Mean over true features of the largest cosine with a decoder row, and the share of them above 0.9."""
    cosine = world.features @ torch.nn.functional.normalize(W_dec.float(), dim=1).T
    best = cosine.max(1).values
    return float(best.mean()), float((best > 0.9).float().mean())
