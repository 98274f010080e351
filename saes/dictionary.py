"""Dictionary: reads a site, gives sparse Codes, writes a site.

    SAE           pre = W_enc (x - b_dec) + b_enc     x_hat = sum_j a_j W_dec[j] + b_dec
    transcoder    pre = W_enc x + b_enc               y_hat = sum_j a_j W_dec[j] + b_dec (+ W_skip x)
    a             = the k largest pre-activations, ReLU'd (Gao et al. 2024; Dunefsky et al. 2024 for transcoders)

What it reads and writes is data, not a class: one class serves both. In memory `W_enc` and `W_dec` are `[latent d]`, a
latent is a row. Saved and loaded dictionaries act on raw activations: centring and scaling used in training are folded
into the weights (`fold` below), which the positive homogeneity of top-k and ReLU makes exact.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..kernels import decode, encode_topk
from .codes import Codes
from .config import DictionaryConfig
from .drawn import drawn
from .errors import UserError
from .keep import KeepRule

Activations = Tensor | Mapping[str, Tensor]


class Scaling(NamedTuple):
    """Training sees (x - mean) / scale: the mean `[d]` and one scale of the read and of the written site."""

    mean_in: Float[Tensor, "d_in"]
    scale_in: float
    mean_out: Float[Tensor, "d_out"]
    scale_out: float

    def to(self, device: torch.device) -> Scaling:
        """The same on another device."""
        return self._replace(mean_in=self.mean_in.to(device), mean_out=self.mean_out.to(device))


class Dictionary(nn.Module):
    """A trained dictionary; `.config` is its shape, `.metadata` where it comes from (model, shards, exclusion rule).

    Parameters: `W_enc [latent d_in]`, `b_enc [latent]`, `W_dec [latent d_out]`, `b_dec [d_out]`, and `W_skip
    [d_out d_in]` or None. `.folder` is where it was saved or loaded, None before.
    """

    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    W_skip: nn.Parameter | None

    def __init__(self, config: DictionaryConfig, tensors: Mapping[str, Tensor], metadata: dict[str, Any] | None = None):
        super().__init__()
        self.config, self.metadata = config, metadata or {}
        self.folder: Path | None = None
        self._hashed: tuple[list[tuple[int, int]], str] | None = None
        d_in, d_out = tensors["W_enc"].shape[-1], tensors["W_dec"].shape[-1]
        shapes = {
            "W_enc": (config.latents, d_in),
            "b_enc": (config.latents,),
            "W_dec": (config.latents, d_out),
            "b_dec": (d_out,),
        }
        if config.skip:
            shapes["W_skip"] = (d_out, d_in)
        for name, shape in shapes.items():
            if name not in tensors or tuple(tensors[name].shape) != shape:
                came = tuple(tensors[name].shape) if name in tensors else "none"
                raise UserError(
                    f"expected {name} of shape {shape} for this dictionary; got {came}; the file is damaged"
                )
            self.register_parameter(name, nn.Parameter(tensors[name], requires_grad=False))
        if not config.skip:
            self.register_parameter("W_skip", None)

    @property
    def read(self) -> str:
        """The site it reads."""
        return self.config.read

    @property
    def write(self) -> str:
        """The site it writes."""
        return self.config.write

    @property
    def is_sae(self) -> bool:
        """True if it writes where it reads."""
        return not self.config.is_transcoder

    @property
    def d_in(self) -> int:
        """Width of the read site."""
        return self.W_enc.shape[1]

    @property
    def fingerprint(self) -> str:
        """Names the weights: a hash over their float32 bytes and the config; kept until a weight is written to."""
        tensors = [tensor for _, tensor in sorted(self.named_parameters())]
        state = [(tensor.data_ptr(), tensor._version) for tensor in tensors]
        if self._hashed is None or self._hashed[0] != state:
            digest = hashlib.blake2b(repr(self.config).encode(), digest_size=16)
            for tensor in tensors:
                digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
            self._hashed = state, digest.hexdigest()
        return self._hashed[1]

    @property
    def keep_rule(self) -> KeepRule:
        """The exclusion rule it was trained under; without one, every token is kept."""
        return KeepRule.from_dict(self.metadata.get("keep", {}))

    def kept(self, positions: Int[Tensor, "token"] | None, activations: Mapping[str, Tensor]) -> Bool[Tensor, "token"]:
        """The tokens that this dictionary answers for, given activations `{site: [token d]}` (see keep.py)."""
        return self.keep_rule.mask(positions, activations)

    def encode(self, x: Activations) -> Codes:
        """Sparse codes of activations `[token d_in]` (or `{site: tensor}` holding the read site), per token."""
        x = self._input(x)
        b_enc = self.b_enc - self.W_enc @ self.b_dec if self.is_sae else self.b_enc
        values, indices = encode_topk(x, self.W_enc, b_enc, self.config.k)
        return Codes(values, indices)

    def decode(self, codes: Codes, x: Activations | None = None) -> Float[Tensor, "token d_out"]:
        """Reconstruction from codes; a skip path needs the input `x` too (ValueError without it)."""
        out = decode(codes.values, codes.indices, self.W_dec) + self.b_dec
        if self.W_skip is None:
            return out
        if x is None:
            raise UserError("expected the input x, which the skip path of this dictionary needs; call decode(codes, x)")
        return out + self._input(x) @ self.W_skip.T

    def forward(self, x: Activations) -> Float[Tensor, "token d_out"]:
        """Reconstruction of the written site from the read site."""
        return self.decode(self.encode(x), x)

    def _input(self, x: Activations) -> Float[Tensor, "token d_in"]:
        if not isinstance(x, Tensor):
            if self.read not in x:
                raise UserError(f"expected activations of {self.read}; got {', '.join(x)}; cache that site")
            x = x[self.read]
        if x.ndim != 2 or x.shape[1] != self.d_in:
            raise UserError(
                f"expected activations [token {self.d_in}]; got {list(x.shape)}; is it the site {self.read}?"
            )
        return x.to(self.W_enc.device, self.W_enc.dtype)

    def save(self, folder: str | Path) -> None:
        """Write `cfg.json` and `sae_weights.safetensors` (SAELens v6 layout; see docs/formats.md)."""
        from .formats import saelens

        saelens.save(self, Path(folder))
        self.folder = Path(folder)

    @staticmethod
    def load(folder: str | Path, format: str = "auto", device: str | torch.device = "cpu") -> Dictionary:
        """Read a dictionary folder: ours, or a TopK SAE that SAELens v6 saved. UserError for anything else."""
        from .formats import saelens

        if format not in ("auto", "saelens"):
            raise UserError(f"expected format auto or saelens; got {format!r}")
        dictionary = saelens.load(Path(folder)).to(device)
        dictionary.folder = Path(folder)
        return dictionary

    _repr_html_ = drawn

    def __repr__(self) -> str:
        path = self.read or "activations"
        path = path if self.is_sae else f"{path} → {self.write}"
        skip = ", skip" if self.config.skip else ""
        return (
            f"Dictionary({path}: {self.config.latents:,} latents of {self.d_in} dimensions, top {self.config.k}{skip})"
        )


def fold(tensors: Mapping[str, Tensor], scaling: Scaling, config: DictionaryConfig) -> dict[str, Tensor]:
    """Weights on raw activations from weights on (x - mean) / scale; latents then have the unit of the written site.

    With s the scales and m the means: W_enc' = (s_out / s_in) W_enc, W_dec' = W_dec, and
    SAE: b_enc' = s b_enc, b_dec' = s b_dec + m. Transcoder: b_enc' = s_out b_enc - W_enc' m_in,
    W_skip' = (s_out / s_in) W_skip, b_dec' = s_out b_dec + m_out - W_skip' m_in.
    """
    ratio = scaling.scale_out / scaling.scale_in
    out = {"W_enc": tensors["W_enc"] * ratio, "W_dec": tensors["W_dec"]}
    out["b_enc"] = tensors["b_enc"] * scaling.scale_out
    out["b_dec"] = tensors["b_dec"] * scaling.scale_out + scaling.mean_out
    if config.is_transcoder:
        out["b_enc"] = out["b_enc"] - out["W_enc"] @ scaling.mean_in
    if config.skip:
        out["W_skip"] = tensors["W_skip"] * ratio
        out["b_dec"] = out["b_dec"] - out["W_skip"] @ scaling.mean_in
    return {name: tensor.detach().clone().contiguous() for name, tensor in out.items()}
