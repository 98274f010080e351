"""Crosscoder: one set of latents read from both models, each with a decoder for A and one for B (Lindsey et al. 2024).

    norm difference   ((|d_B| - |d_A|) / max + 1) / 2: 0 only A, 0.5 both, 1 only B; each norm in units of its model's typical activation
    cosine            of the two decoders

BatchTopK (Bussmann et al. 2024) rather than an L1 penalty, which shrinks a weak decoder to nothing and so makes latents
look exclusive that are not. What still looks exclusive is checked by latent scaling (scaling.py; Minder et al. 2025, arXiv 2504.02922):

    only A, only B    the other model's decoder is gone, and nothing like the latent is left there either
    shrunk            spurious: the latent's direction is in the *error* of the other model (complete shrinkage)
    decoupled         spurious: the other model's *reconstruction* holds it by other latents (latent decoupling)
    shared            both decoders stand
    silent            it did not fire on the text that was measured

A fine-tune that makes an old feature write something new leaves a *shared* latent with two decoders, not an exclusive one. So

    score             mean activation times |d_B - d_A|, in typical activations: how much more, or other, B writes by this latent

Whether the models differ along d_B - d_A, where the latent fires, is tested on documents that training did not see (reading.py,
statistics.py); a discovery has q at most the stated rate and is not spurious. Streams of different widths have no common
direction: there class and score come from the norms alone, and nothing is tested.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...saes import Dictionary, Shards
from .reading import Reading, kept_pairs, of_crosscoder, projected
from .scaling import Presence, latent_scaling
from .statistics import benjamini_hochberg, differences, effect_sizes, sign_flip

Columns = dict[str, Tensor]
CLASSES = ("silent", "shared", "only A", "only B", "shrunk", "decoupled")
EXCLUSIVE = 0.1  # a norm difference this near 0 or 1
LARGEST_ERROR = 0.2  # nu_eps of a latent that is exclusive indeed; above it, shrunk
LARGEST_RECONSTRUCTION = 0.5  # likewise nu_r; above it, decoupled


def norm_difference(a: Float[Tensor, "latent"], b: Float[Tensor, "latent"]) -> Float[Tensor, "latent"]:
    """((b - a) / max + 1) / 2 of the decoders' norms: 0 only A, 1 only B; 0.5 where both are 0."""
    return ((b - a) / torch.maximum(a, b).clamp_min(1e-30) + 1) / 2


def classify(
    norms: Float[Tensor, "latent"],
    nu_r: Float[Tensor, "latent"],
    nu_eps: Float[Tensor, "latent"],
    fires: Bool[Tensor, "latent"],
) -> Tensor:
    """The class of each latent, a number in CLASSES. NaN ratios (different widths) call nothing spurious."""
    only_a, only_b = norms <= EXCLUSIVE, norms >= 1 - EXCLUSIVE
    found = torch.where(only_a, 2, torch.where(only_b, 3, 1))
    by_error, by_other = nu_eps / LARGEST_ERROR, nu_r / LARGEST_RECONSTRUCTION
    is_spurious = (only_a | only_b) & ((by_error > 1) | (by_other > 1))
    found = torch.where(is_spurious, torch.where(by_other > by_error, 5, 4), found)
    return torch.where(fires, found, 0)


def compared(crosscoder: Dictionary, shards: Shards, rows: Bool[Tensor, "row"], seed: int, fdr: float) -> Columns:
    """Every number of each latent of `crosscoder` (sites A, B), measured on `rows` of the joined Shards."""
    reading = of_crosscoder(crosscoder)
    D_a, D_b = (decoder.double() for decoder in reading.written)
    if not reading.is_same_width:
        return _without_directions(reading, shards, rows)
    presence = latent_scaling(crosscoder, shards, rows)
    change = D_b - D_a
    unit = torch.nn.functional.normalize(change, dim=1).to(reading.written[0].dtype)
    by_document = projected(reading, unit, shards, rows)
    norms = norm_difference(D_a.norm(dim=1) / presence.size_a, D_b.norm(dim=1) / presence.size_b)
    p = sign_flip(differences(by_document.a, by_document.b), seed, fdr=fdr)
    size = change.norm(dim=1) / max(presence.size_a, presence.size_b)
    return _columns(norms, size, by_document.mean, by_document.density, presence, p, fdr) | {
        "cosine": torch.cosine_similarity(D_a, D_b, dim=1),
        **effect_columns(by_document.a, by_document.b, seed),
    }


def effect_columns(a: Float[Tensor, "document latent"], b: Float[Tensor, "document latent"], seed: int) -> Columns:
    """Cohen's d over documents and its interval."""
    sizes = effect_sizes(a, b, seed)
    return {"d": sizes.d, "d_low": sizes.low, "d_high": sizes.high}


def _columns(
    norms: Tensor, size: Tensor, mean: Tensor, density: Tensor, presence: Presence | None, p: Tensor, fdr: float
) -> Columns:
    nothing = torch.full_like(norms, torch.nan)
    nu_r, nu_eps = (nothing, nothing) if presence is None else (presence.nu_r, presence.nu_eps)
    kinds, q = classify(norms, nu_r, nu_eps, density > 0), benjamini_hochberg(p)
    is_sound = (kinds == 1) | (kinds == 2) | (kinds == 3)
    betas: dict[str, Any] = {} if presence is None else presence.betas
    return {
        "class": kinds,
        "norm_difference": norms,
        "nu_r": nu_r,
        "nu_eps": nu_eps,
        "mean": mean,
        "density": density,
        "p": p,
        "q": q,
        "score": mean * size,
        "is_found": is_sound & (q <= fdr),
        **betas,
    }


def _without_directions(reading: Reading, shards: Shards, rows: Bool[Tensor, "row"]) -> Columns:
    """What can be said of models of different widths: norms in units of each model's activations, and where latents fire."""
    seen, total, fired = 0, torch.zeros(reading.latents).double(), torch.zeros(reading.latents).double()
    moments = torch.zeros(2, dtype=torch.float64)
    means: list[Tensor] = [rows_of.new_zeros(rows_of.shape[1]).double() for rows_of in reading.written]
    for pair in kept_pairs(reading, shards, rows):
        codes, _ = reading.encode(pair.x_a, pair.x_b)
        flat = codes.indices.flatten()
        total.index_add_(0, flat, codes.values.double().flatten())
        fired.index_add_(0, flat, (codes.values != 0).double().flatten())
        seen += len(pair.tokens)
        for side, x in enumerate((pair.x_a, pair.x_b)):
            moments[side] += x.double().square().sum()
            means[side] += x.double().sum(0)
    sizes = [
        float((moments[side] / max(seen, 1) - (means[side] / max(seen, 1)).square().sum()).clamp_min(1e-24).sqrt())
        for side in range(2)
    ]
    own = [rows_of.double().norm(dim=1) / size for rows_of, size in zip(reading.written, sizes, strict=True)]
    norms = norm_difference(own[0], own[1])
    nothing = torch.full_like(norms, torch.nan)
    found = _columns(norms, own[1] - own[0], total / max(seen, 1), fired / max(seen, 1), None, nothing, 0.0)
    return found | {"cosine": nothing, "d": nothing, "d_low": nothing, "d_high": nothing}
