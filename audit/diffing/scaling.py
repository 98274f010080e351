"""Latent scaling: how much of a latent that one model alone seems to have is in the other model too (Minder et al. 2025, section 2.3).

For latent j with activations f and its longer decoder d, and y of each model m,

    beta_m = argmin sum_t |y_t - beta f_t d|^2 = sum_t f_t <d, y_t> / (sum_t f_t^2 |d|^2)

once for the reconstruction of m, y = x_hat - b_dec, once for its error with the latent's own part put back, y = x - x_hat + f d_m.
With o the model that has the longer decoder and w the other,

    nu_r = |beta_w / beta_o| of the reconstructions          nu_eps = |beta_w / beta_o| of the errors

Of a latent that is exclusive indeed both are near 0. High nu_eps: its direction is there and was not reconstructed (complete
shrinkage). High nu_r: other latents reconstruct it there (latent decoupling). The sums need one pass and are exact, no regression is run.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...kernels import contract, decode
from ...saes import Codes, Dictionary, Shards
from .reading import kept_pairs, of_crosscoder


class Presence(NamedTuple):
    """The two ratios of each latent, the four betas by name, and the typical activation (root mean square length) of each model."""

    nu_r: Float[Tensor, "latent"]
    nu_eps: Float[Tensor, "latent"]
    betas: dict[str, Tensor]
    size_a: float
    size_b: float


class Scalings:
    """The sums of one pass: `update` with codes and both models' activations, then `presence`."""

    def __init__(self, D_a: Float[Tensor, "latent d"], D_b: Float[Tensor, "latent d"], biases: tuple[Tensor, Tensor]):
        """Decoders and biases of A and B."""
        self._decoders, self._biases = (D_a.float().contiguous(), D_b.float().contiguous()), biases
        self.own_is_b = D_b.norm(dim=1) >= D_a.norm(dim=1)
        self._direction = torch.where(self.own_is_b[:, None], *reversed(self._decoders)).contiguous()
        latents = len(D_a)
        self._squares = torch.zeros(latents, dtype=torch.float64)
        self._along = torch.zeros(4, latents, dtype=torch.float64)
        self._rows, self._lengths = 0, torch.zeros(2, dtype=torch.float64)
        self._means = torch.zeros(2, D_a.shape[1], dtype=torch.float64)

    def update(self, codes: Codes, x_a: Float[Tensor, "token d"], x_b: Float[Tensor, "token d"]) -> None:
        """Add the rows of one batch."""
        f, indices = codes.values.float(), codes.indices
        flat = indices.flatten()
        self._squares.index_add_(0, flat, f.double().square().flatten())
        for side, x in enumerate((x_a, x_b)):
            x, D = x.float(), self._decoders[side]
            made = decode(f, indices, D)
            own = (D * self._direction).sum(1)[indices]  # <d_m, d>
            recon = contract(made, indices, self._direction)
            error = contract(x - made - self._biases[side].float(), indices, self._direction) + f * own
            for number, values in enumerate((recon, error)):
                self._along[2 * number + side].index_add_(0, flat, (f * values).double().flatten())
            self._lengths[side] += x.double().square().sum()
            self._means[side] += x.double().sum(0)
        self._rows += len(f)

    def presence(self) -> Presence:
        """The ratios; NaN of a latent that never fired."""
        scale = self._squares * self._direction.double().square().sum(1)
        recon_a, recon_b, error_a, error_b = torch.where(scale > 0, self._along / scale.clamp_min(1e-30), torch.nan)
        spread = self._lengths / max(self._rows, 1) - (self._means / max(self._rows, 1)).square().sum(1)
        sizes = spread.clamp_min(1e-24).sqrt()
        return Presence(
            self._ratio(recon_a, recon_b),
            self._ratio(error_a, error_b),
            {"beta_r_a": recon_a, "beta_r_b": recon_b, "beta_eps_a": error_a, "beta_eps_b": error_b},
            float(sizes[0]),
            float(sizes[1]),
        )

    def _ratio(self, a: Float[Tensor, "latent"], b: Float[Tensor, "latent"]) -> Float[Tensor, "latent"]:
        """|other / own|, where own is the model with the longer decoder."""
        other, own = torch.where(self.own_is_b, a, b), torch.where(self.own_is_b, b, a)
        return (other / torch.where(own.abs() < 1e-12, 1e-12, own)).abs()


def latent_scaling(crosscoder: Dictionary, shards: Shards, rows: Bool[Tensor, "row"]) -> Presence:
    """One pass over `rows` of the joined Shards that `crosscoder` (sites A, B of one width) reads."""
    reading = of_crosscoder(crosscoder)
    D_a, D_b = reading.written
    bias_a, bias_b = crosscoder.b_dec.detach().split([D_a.shape[1], D_b.shape[1]])
    sums = Scalings(D_a, D_b, (bias_a, bias_b))
    for pair in kept_pairs(reading, shards, rows):
        codes, _ = reading.encode(pair.x_a, pair.x_b)
        sums.update(codes, pair.x_a, pair.x_b)
    return sums.presence()
