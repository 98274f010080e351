"""What is usual for each latent: how often it fires, how strongly at most, and how surprising a value of it is, in bits.

Of a FeatureStore where there is one (millions of tokens, circuits/prompts/surprise.py), else of the baseline text (a few thousand, where
no surprise can exceed log2 of their number). `source` says which, and in which model: a store may be of the base.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ....circuits.prompts.surprise import surprise
from ....saes import FeatureStore
from .baseline import Baseline

DENSE, TIMES = (
    0.1,
    3,
)  # a latent that fires on a larger share of ordinary tokens, or on so many times the average, says little of one text


@dataclass(frozen=True, eq=False)
class Norms:
    """Density, largest value and mean activation of every latent on ordinary text."""

    density: Float[Tensor, "latent"]
    largest: Float[Tensor, "latent"]
    mean: Float[Tensor, "latent"]
    source: str
    store: FeatureStore | None
    baseline: Baseline | None

    @cached_property
    def dense(self) -> float:
        """The density above which a latent is dense: DENSE, or in a small dictionary TIMES the average of its latents that fire."""
        firing = self.density[self.density > 0]
        return max(DENSE, TIMES * float(firing.mean())) if len(firing) else DENSE

    def is_dense(self, latent: int) -> bool:
        """Whether it fires on so many tokens of ordinary text that it says little of one."""
        return float(self.density[latent]) > self.dense

    def bits(self, latents: Int[Tensor, "n"], values: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        """-log2 of the share of ordinary tokens on which the latent is at least so strong; NaN for values that are not positive."""
        if self.store is not None:
            return surprise(self.store, latents, values).bits
        assert self.baseline is not None
        out = torch.full(values.shape, torch.nan, dtype=torch.float64)
        for latent in latents.unique().tolist():
            here = (latents == latent) & (values > 0)
            known = self.baseline.of(latent).sort().values
            above = len(known) - torch.searchsorted(known, values[here].to(known))
            out[here] = -(above.clamp_min(1).double() / len(known)).log2()
        return out


def norms_of(store: FeatureStore | None, baseline: Baseline | None, model: str) -> Norms:
    """The norms of a store, or of a baseline where there is none; `model` says which one read the text."""
    if store is not None:
        kept = int(store.manifest.get("kept_rows") or len(store.tokens))
        density = store.density.double()
        mean = (
            store.columns["mean_value"].double() * density
            if "mean_value" in store.columns
            else torch.zeros_like(density)
        )
        source = f"a store of {kept:,} tokens, read in {model}"
        return Norms(density, store.max_value.double(), mean.nan_to_num(), source, store, None)
    assert baseline is not None
    tokens = max(len(baseline), 1)
    return Norms(
        baseline.counts().double() / tokens, baseline.largest(), baseline.sums() / tokens,
        f"{tokens:,} tokens of {baseline.texts} baseline texts, read in {model}", None, baseline,
    )  # fmt: skip
