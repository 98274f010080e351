"""Latents worth a first look, by a stated statistic."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def interesting(columns: Mapping[str, Tensor], example_rows: Int[Tensor, "latent example"], n: int) -> list[int]:
    """At most `n` latents; see FeatureStore.interesting."""
    density, bits = columns["density"], columns["token_entropy"]
    full = (example_rows >= 0).all(1)
    most = torch.tensor(float(example_rows.shape[1])).log2()
    varied = columns["context_entropy"] >= 0.75 * most
    candidates = full & varied & (density >= 1e-4) & (density <= 1e-2)
    families = (bits <= 0.5, (bits >= 1) & (bits <= 3), torch.ones_like(candidates))
    one, several, any_ = (_nearest(density, candidates & family) for family in families)
    chosen = one[: n // 2] + several[: n - n // 2]
    return (chosen + [latent for latent in any_ if latent not in chosen])[:n]


def _nearest(density: Float[Tensor, "latent"], wanted: Bool[Tensor, "latent"]) -> list[int]:
    """The wanted latents, densities nearest 1e-3 (in ratio) first."""
    latents = wanted.nonzero().squeeze(1)
    return latents[(density[latents] / 1e-3).log().abs().argsort(stable=True)].tolist()
