"""What can be watched: latents with weights, or a probe. Each gives one number a token.

    Latents   Σ_j weight_j activation_j          of one dictionary; NaN where it does not answer for the token (saes/keep.py)
    Probe     direction · (x - centre) + bias    at one site; log-odds for a logistic probe, for a difference of means the distance
                                                 from the middle between both means, in the unit of the activations

A probe is linear, so the mean of its scores over a text's tokens is its score of the mean activation, which is what it was fitted on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...saes import Codes, Dictionary, UserError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@runtime_checkable
class Signal(Protocol):
    """One number a token from the activations of `sites`."""

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites that it reads, by their canonical or another spelling."""
        ...

    def scores(self, part: Mapping[str, Tensor], positions: Tensor, tokens: Tensor) -> Float[Tensor, "token"]:
        """Its number at each token, NaN where it has none; `part` by the names of `sites`."""
        ...

    def about(self) -> dict[str, Any]:
        """What it is, as plain JSON data."""
        ...


@dataclass(frozen=True)
class Latents:
    """Latents of a dictionary and their weights."""

    dictionary: Dictionary
    weights: Mapping[int, float]

    def __post_init__(self) -> None:
        wrong = [latent for latent in self.weights if not 0 <= latent < self.dictionary.config.latents]
        if wrong or not self.weights or not all(torch.tensor(list(self.weights.values())).isfinite()):
            raise UserError(
                f"expected latents in [0, {self.dictionary.config.latents}) with finite weights; got "
                f"{wrong[0] if wrong else dict(self.weights)}; name some of this dictionary"
            )

    @property
    def sites(self) -> tuple[str, ...]:
        """The dictionary's sites."""
        return self.dictionary.sites

    def scores(
        self, part: Mapping[str, Tensor], positions: Int[Tensor, "token"], tokens: Int[Tensor, "token"]
    ) -> Float[Tensor, "token"]:
        """The weighted sum of its latents at each token."""
        return weighted(encoded(self.dictionary, part, positions, tokens), self.weights)

    def about(self) -> dict[str, Any]:
        """Dictionary and weights."""
        weights = {str(latent): weight for latent, weight in self.weights.items()}
        return {"kind": "latents", "dictionary": self.dictionary.fingerprint, "weights": weights}


@dataclass(frozen=True)
class Probe:
    """A direction at a site; `quality` is what fitting it found (probes.py), empty for a direction that was given."""

    site: str
    direction: Float[Tensor, "d"]
    centre: Float[Tensor, "d"] | None = None
    bias: float = 0.0
    kind: Literal["direction", "logistic", "means"] = "direction"
    quality: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.direction.ndim != 1 or not self.direction.isfinite().all() or not self.direction.any():
            raise UserError(
                f"expected a direction [d] of finite numbers that are not all 0; got {list(self.direction.shape)}; give another"
            )

    @property
    def sites(self) -> tuple[str, ...]:
        """The one site."""
        return (self.site,)

    def scores(
        self, part: Mapping[str, Tensor], positions: Int[Tensor, "token"], tokens: Int[Tensor, "token"]
    ) -> Float[Tensor, "token"]:
        """Its score at each token, in float64."""
        x = part[self.site].double()
        if x.shape[1] != len(self.direction):
            raise UserError(
                f"expected a direction of {x.shape[1]} dimensions at {self.site}; got {len(self.direction)}; is it another model's?"
            )
        centre = 0 if self.centre is None else self.centre.double()
        return (x - centre) @ self.direction.double() + self.bias

    def about(self) -> dict[str, Any]:
        """Site, kind and what fitting it found."""
        return {"kind": f"probe: {self.kind}", "site": self.site, "quality": dict(self.quality or {})}


def encoded(dictionary: Dictionary, part: Mapping[str, Tensor], positions: Tensor, tokens: Tensor) -> Codes:
    """The codes of some rows on the CPU, NaN in every slot of those that the dictionary does not answer for."""
    rows = {site: x.to(dictionary.W_enc.device, dictionary.W_enc.dtype) for site, x in part.items()}
    own = {site: rows[site] for site in dictionary.sites}
    codes = dictionary.encode({site: own[site] for site in dictionary.config.site}).cpu()
    kept = dictionary.kept(positions, {site: x.cpu() for site, x in own.items()}, tokens).cpu()
    return Codes(torch.where(kept[:, None], codes.values.double(), torch.nan), codes.indices)


def weighted(codes: Codes, weights: Mapping[int, float]) -> Float[Tensor, "token"]:
    """Σ_j weight_j activation_j, NaN at rows of NaN."""
    out = torch.zeros(len(codes.values), dtype=torch.float64)
    for latent, weight in weights.items():
        out += weight * torch.where(codes.indices == latent, codes.values, 0.0).sum(1)
    return torch.where(codes.values.isnan().any(1), torch.nan, out)


def check_sites(model: TransformerBridge, signals: Mapping[str, Signal]) -> dict[str, str]:
    """Every site that the signals name → its canonical spelling; UserError for one that the model lacks or no signal."""
    from ...saes import resolve_site
    from ...saes.splice import check_model

    if not signals:
        raise UserError(
            "expected at least one signal, e.g. Latents(dictionary, {12: 1.0}); got none; name what to watch"
        )
    for signal in signals.values():
        if isinstance(signal, Latents):
            check_model(signal.dictionary, model)
    names: Sequence[str] = [site for signal in signals.values() for site in signal.sites]
    return {name: resolve_site(model, name) for name in names}
