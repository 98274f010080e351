"""Weights that act on raw activations, from weights that were trained on centred and scaled ones.

Training sees x' = (x - mean_in) / scale_in and y' = (y - mean_out) / scale_out, column by column; the scale is one number a site.
With u the unit of the latents (the scale of what is written; over several sites their root mean square):

    W_enc' = u W_enc / scale_in          W_dec' = W_dec scale_out / u           W_skip' = scale_out W_skip / scale_in
    b_enc' = u b_enc - W_enc' mean_in    b_dec' = scale_out b_dec + mean_out - W_skip' mean_in
    threshold' = u threshold             b_mag' = u b_mag - exp(r_mag) W_enc' mean_in,  r_mag as it is

An SAE subtracts b_dec before it encodes, and mean_in is in b_dec' already: b_enc' = u b_enc, b_mag' = u b_mag. Since every
rule of rules.py is positively homogeneous (with its threshold), activations are u times what they were, and nothing else changes.

A shared dictionary has a mean and a scale for each site: with u the site's own scale the matrices stay as they are, and only the
biases and thresholds, `[site latent]` and `[site d]`, differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .layout import Layout, columns

Scale = float | Float[Tensor, "d"]


class Scaling(NamedTuple):
    """Training sees (x - mean) / scale: mean and scale of each column that is read, and of each that is written."""

    mean_in: Float[Tensor, "d_in"]
    scale_in: Scale
    mean_out: Float[Tensor, "d_out"]
    scale_out: Scale

    def to(self, device: torch.device) -> Scaling:
        """The same on another device."""
        scale_in, scale_out = (
            scale.to(device) if isinstance(scale, Tensor) else scale for scale in (self.scale_in, self.scale_out)
        )
        return Scaling(self.mean_in.to(device), scale_in, self.mean_out.to(device), scale_out)


def fold(tensors: Mapping[str, Tensor], scaling: Scaling, layout: Layout) -> dict[str, Tensor]:
    """The tensors of a Dictionary, of the shapes that it wants, from trained ones (module header)."""
    if not layout.is_shared:
        return _cloned(_fold(tensors, scaling, layout))
    ins, outs = columns(layout.reads), columns(layout.writes)
    each = [
        _fold(tensors, Scaling(*_columns(scaling, read, write)), layout) for read, write in zip(ins, outs, strict=True)
    ]
    own = {name: torch.stack([one[name] for one in each]) for name in each[0] if name not in ("W_enc", "W_dec")}
    return _cloned({"W_enc": each[0]["W_enc"], "W_dec": each[0]["W_dec"], **own})


def _columns(scaling: Scaling, read: slice, write: slice) -> tuple[Tensor, Scale, Tensor, Scale]:
    mean_in, scale_in, mean_out, scale_out = scaling
    of_read = scale_in[read] if isinstance(scale_in, Tensor) else scale_in
    of_write = scale_out[write] if isinstance(scale_out, Tensor) else scale_out
    return mean_in[read], of_read, mean_out[write], of_write


def _fold(w: Mapping[str, Tensor], scaling: Scaling, layout: Layout) -> dict[str, Tensor]:
    config, (mean_in, scale_in, mean_out, scale_out) = layout.config, scaling
    unit = scale_out.square().mean().sqrt() if isinstance(scale_out, Tensor) else scale_out
    into = scale_in if isinstance(scale_in, Tensor) else w["W_enc"].new_full((len(mean_in),), scale_in)
    W_enc, shift = _encoder(w["W_enc"], unit / into, mean_in, layout)
    out = {"W_enc": W_enc, "W_dec": w["W_dec"] * (scale_out / unit)}
    out["b_dec"] = w["b_dec"] * scale_out + mean_out
    shift = shift if not config.is_sae else torch.zeros_like(shift)
    out["b_enc"] = w["b_enc"] * unit - shift
    if "threshold" in w:
        out["threshold"] = w["threshold"] * unit
    if "r_mag" in w:
        out |= {"r_mag": w["r_mag"], "b_mag": w["b_mag"] * unit - w["r_mag"].exp() * shift}
    if "W_skip" in w:
        by_row = scale_out[:, None] if isinstance(scale_out, Tensor) else scale_out
        out["W_skip"] = w["W_skip"] * by_row / into
        out["b_dec"] = out["b_dec"] - out["W_skip"] @ mean_in
    return out


def _encoder(
    W_enc: Tensor, factor: Float[Tensor, "d_in"], mean_in: Float[Tensor, "d_in"], layout: Layout
) -> tuple[Float[Tensor, "latent d"], Float[Tensor, "latent"]]:
    """The encoder times what each column is multiplied by, and its product with the mean; block by block."""
    blocks = layout.blocks
    rows = [W_enc[block.latents] * factor[block.reads] for block in blocks]
    shifts = [row @ mean_in[block.reads] for row, block in zip(rows, blocks, strict=True)]
    return torch.cat(rows), torch.cat(shifts)


def _cloned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
