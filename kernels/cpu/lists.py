"""The slots of sparse codes listed by latent: what sums over tokens, latent by latent, needs.

    order     slots, sorted by latent; within a latent in the order they came (a stable sort)
    rows      of each listed slot the row (token) that it multiplies
    offsets   where the list of each latent begins, and the end

Sums over such lists have a fixed order, so they repeat bit for bit, and each latent's row is written once. A range of
latents can be summed alone, so a gradient need never exist whole. On the CPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from ..reference import at_least_float32, check_indices


class Lists(NamedTuple):
    """Slots sorted by latent, the row of each, and where each latent begins."""

    order: Int[Tensor, "slot"]
    rows: Int[Tensor, "slot"]
    offsets: Int[Tensor, "latent+1"]

    def sum(
        self, values: Float[Tensor, "..."], matrix: Float[Tensor, "row d"], start: int = 0, stop: int | None = None
    ) -> Float[Tensor, "range d"]:
        """For latents start to stop: the sum over its slots of values[slot] matrix[row of the slot]."""
        matrix = at_least_float32(matrix)
        stop = len(self.offsets) - 1 if stop is None else stop
        first, last = int(self.offsets[start]), int(self.offsets[stop])
        if first == last:
            return matrix.new_zeros(stop - start, matrix.shape[1])
        weights = values.reshape(-1)[self.order[first:last]].to(matrix.dtype)
        return embedding_bag(
            self.rows[first:last], matrix, self.offsets[start:stop] - first, per_sample_weights=weights, mode="sum"
        )


def list_by_latent(latents_of: Int[Tensor, "..."], rows_of: Int[Tensor, "..."], latents: int) -> Lists:
    """Sort slots by latent, given the latent and the row of each. Raises ValueError for a latent outside [0, latents)."""
    flat = latents_of.reshape(-1)
    check_indices(flat, latents)
    latent, order = torch.sort(flat, stable=True)
    offsets = torch.searchsorted(latent, torch.arange(latents + 1, dtype=latent.dtype, device=latent.device))
    return Lists(order, rows_of.reshape(-1)[order], offsets)
