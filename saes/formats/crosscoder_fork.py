"""Crosscoders of the Science of Finetuning fork of dictionary_learning: `ae.pt` whose `encoder.weight` has three axes.

| tensor | shape |
|---|---|
| encoder.weight, encoder.bias | [site d latent], [latent] |
| decoder.weight, decoder.bias | [site latent d], [site d] |
| code_normalization_id | 1 crosscoder, 2 sae, 3 mixed, 4 none, 5 decoupled |
| k, threshold | BatchTopKCrossCoder only |

codes = relu(sum over sites of x W + b). With a threshold, those whose code times a norm of their decoder exceeds it are kept, so a
latent's threshold is theirs over that norm: a jumprelu crosscoder here. The norm is the sum of its rows' (crosscoder), that of all of them
together (sae), or 1 (none). Refused: mixed, whose weights are not in the file; decoupled, which has a code for each site; and
activations that are normalised.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import UserError
from .build import Given, configured, finished, uniform
from .files import absent, plain, whole

if TYPE_CHECKING:
    from ..dictionary import Dictionary

WANTED = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
NORMS = {1: "crosscoder", 2: "sae", 3: "mixed", 4: "none", 5: "decoupled"}


def holds(found: dict[str, Any]) -> bool:
    """True if the encoder has an axis of sites."""
    weight = found.get("encoder.weight")
    return isinstance(weight, Tensor) and weight.ndim == 3


def load(path: Path, found: dict[str, Any], trainer: dict[str, Any], given: Given) -> Dictionary:
    """The crosscoder of a state dict; see the module header."""
    # Buffers of a normaliser that was never set are NaN, and do nothing.
    idle = [name for name, value in found.items() if name not in WANTED and _is_nan(value)]
    optional = ("code_normalization_id", "k", "threshold", "activation_normalizer.target_rms", "target_rms", *idle)
    absent(found, path, WANTED, optional)
    tensors = uniform(plain(found, path, WANTED))
    encoder, decoder, bias = (tensors[name] for name in ("encoder.weight", "decoder.weight", "decoder.bias"))
    sites, d, latents = encoder.shape
    shapes = {"decoder.weight": (sites, latents, d), "decoder.bias": (sites, d), "encoder.bias": (latents,)}
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape or sites < 2 or not latents:
            raise UserError(
                f"expected {name} of {list(shape)} in {path}; got {list(tensors[name].shape)}; it is damaged"
            )
    ours = {
        "W_enc": encoder.permute(2, 0, 1).flatten(1),
        "b_enc": tensors["encoder.bias"],
        "W_dec": decoder.permute(1, 0, 2).flatten(1),
        "b_dec": bias.flatten(),
    }
    k = whole(found["k"], "k", path) if "k" in found else 32
    if "threshold" in found:
        ours["threshold"] = _threshold(path, found, decoder)
    config = configured(
        path,
        site=given.site or tuple(f"site_{number}" for number in range(sites)),
        site_out=given.site_out,
        activation="jumprelu" if "threshold" in found else "relu",
        latents=latents,
        k=min(given.k or k, latents),
    )
    return finished(config, ours, path, {"dictionary_learning": trainer})


def _is_nan(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and bool(value.isnan().all())


def _threshold(path: Path, found: dict[str, Any], decoder: Tensor) -> Tensor:
    kind = NORMS.get(whole(found.get("code_normalization_id", 1), "code_normalization_id", path))
    threshold = plain(found, path, ["threshold"])["threshold"]
    if kind not in ("crosscoder", "sae", "none") or threshold.numel() != 1:
        raise UserError(
            f"expected code normalization crosscoder, sae or none and one threshold in {path}; got {kind} and "
            f"{list(threshold.shape)}, which one code for all sites cannot express; it is not loaded"
        )
    norms = decoder.double().norm(dim=2).sum(0) if kind == "crosscoder" else decoder.double().norm(dim=(0, 2))
    norms = torch.ones_like(norms) if kind == "none" else norms
    # A latent that writes nothing is never above a threshold; where none was set (-1) every positive code passes.
    limit = threshold.double().clamp_min(0) / norms.clamp_min(torch.finfo(torch.float32).tiny)
    return limit.clamp_max(torch.finfo(decoder.dtype).max / 2).to(decoder.dtype)
