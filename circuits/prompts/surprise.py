"""How rare an activation is in the corpus that a FeatureStore was collected on, in bits.

    surprise(j, v) = -log2( number of kept corpus tokens on which latent j is at least v / number of kept corpus tokens )

A strong latent that is always strong is no news; a weak one that hardly ever fires is. The store counts every firing in
half-octave bins of its value, so the number of tokens at least v is known exactly up to the bin that v lies in:

    above(j, b) <= number <= above(j, b) + in(j, b)

which gives `low` and `high`; `bits` spreads the bin's tokens evenly over its log width. Where v exceeds the largest value of the corpus
the number is 0: `low` and `bits` are then log2 of the corpus' kept tokens, `high` is infinite.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...saes.errors import UserError
from ...saes.latents.gather.stats import histogram_edges
from ...saes.latents.shelf.store import FeatureStore


class Surprise(NamedTuple):
    """Bits, interpolated within the histogram's bin, and the bounds that hold for certain; NaN for a value that is not positive."""

    bits: Float[Tensor, "n"]
    low: Float[Tensor, "n"]
    high: Float[Tensor, "n"]


def surprise(store: FeatureStore, latents: Int[Tensor, "n"], values: Float[Tensor, "n"]) -> Surprise:
    """The surprise of each latent at its value. UserError for a store of fewer latents or without kept tokens."""
    corpus = store.manifest.get("kept_rows")
    if not isinstance(corpus, int) or corpus < 1:
        raise UserError(f"expected a store collected on at least one kept token; got kept_rows {corpus!r}; collect it")
    if latents.numel() and int(latents.max()) >= len(store):
        raise UserError(
            f"expected latents below {len(store)}, as the store has; got {int(latents.max())}; is it another dictionary's?"
        )
    values = values.double()
    own, back = latents.unique(return_inverse=True)
    counts = _histograms(store, own).double()[back]
    edges = histogram_edges().double()
    bins = (torch.bucketize(values, edges, right=True) - 1).clamp(0, counts.shape[1] - 1)
    inside = counts.gather(1, bins[:, None])[:, 0]
    above = counts.flip(1).cumsum(1).flip(1).gather(1, bins[:, None])[:, 0] - inside
    part = (values.log2() - edges[bins].log2()) / (edges[bins + 1].log2() - edges[bins].log2())
    is_new = values > store.max_value[own].double()[back]
    bounds = [above + inside, above + inside * (1 - part.clamp(0, 1)), above]
    most, middle, least = (torch.where(is_new, 1.0, bound.clamp(1.0, corpus)) for bound in bounds)
    low, bits, high = (-(number / corpus).log2() for number in (most, middle, least))
    unknown = ~(values > 0)
    high = torch.where(is_new, torch.inf, high)
    return Surprise(*(column.masked_fill(unknown, torch.nan) for column in (bits, low, high)))


def _histograms(store: FeatureStore, latents: Int[Tensor, "n"]) -> Int[Tensor, "n bin"]:
    if not len(latents):
        return torch.zeros(0, len(histogram_edges()) - 1, dtype=torch.int64)
    return store._arrays["histogram"][latents]
