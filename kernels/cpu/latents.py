"""What each latent does, on the CPU: one sort of the slots, then every part of the answer from the sorted list."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..reference import check_indices
from ..segment import sorted_keys


def segment(
    values: Tensor, indices: Tensor, latents: int, edges: Tensor, examples: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See segment.py; float64 is computed by the definition."""
    check_indices(indices, latents)
    if values.dtype == torch.float64:
        return reference.segment(values, indices, latents, edges, examples)
    _, slots, offsets = sorted_keys(values, indices, latents)
    # Empty slots stand at the end.
    slots = slots[: int(offsets[-1])]
    latent, value = indices.reshape(-1)[slots].long(), values.reshape(-1)[slots]

    bins = len(edges) - 1
    place = torch.searchsorted(edges[1:-1].float().contiguous(), value.float(), right=True)
    histogram = slots.new_zeros(latents * bins, dtype=torch.int32)
    histogram.scatter_add_(0, latent * bins + place, slots.new_ones(len(slots), dtype=torch.int32))

    rank = torch.arange(len(slots), device=slots.device) - offsets[latent]
    best = rank < examples
    at = (latent * examples + rank)[best]
    top_values, top_tokens = values.new_zeros(latents * examples), slots.new_full((latents * examples,), -1)
    top_values[at], top_tokens[at] = value[best], slots[best] // max(indices.shape[1], 1)
    top = (latents, examples)
    return offsets.diff(), histogram.view(latents, bins), top_values.view(top), top_tokens.view(top)
