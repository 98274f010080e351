"""Codes: sparse activations, padded to `[token width]`; value 0 is an empty slot."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .drawn import drawn


class Codes(NamedTuple):
    """For each token the active latents and their values; `values, indices = codes` unpacks."""

    values: Float[Tensor, "token k"]
    indices: Int[Tensor, "token k"]

    _repr_html_ = drawn

    def dense(self, latents: int) -> Float[Tensor, "token latent"]:
        """The matrix `[token latent]` that these codes stand for."""
        out = torch.zeros(len(self.values), latents, dtype=self.values.dtype, device=self.values.device)
        return out.scatter_add(1, self.indices, self.values)

    def of(self, latents: Int[Tensor, "wanted"]) -> Float[Tensor, "token wanted"]:
        """The values of a few chosen latents, without the dense matrix."""
        return ((self.indices[:, :, None] == latents) * self.values[:, :, None]).sum(1)

    def cpu(self) -> Codes:
        """The same codes on the CPU."""
        return Codes(self.values.cpu(), self.indices.cpu())

    def l0(self) -> Int[Tensor, "token"]:
        """How many latents are active on each token."""
        return (self.values != 0).sum(1)
