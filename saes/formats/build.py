"""From the tensors of a file to a Dictionary whose numbers are the same.

Tensors come in our layout, a latent a row. Two things differ between libraries and are folded into the biases:

    encodes x - b_dec where ours does not (a transcoder)    b_enc' = b_enc - W_enc b_dec
    encodes x where ours encodes x - b_dec (an SAE)         b_enc' = b_enc + W_enc b_dec,  b_mag' likewise times exp(r_mag)

A sum that is folded has no place in 16 bits: such weights become float32. Most libraries apply ReLU before a threshold, so
that one below zero acts as zero: it is stored as zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..dictionary import Dictionary
from ..dictionary_config import DictionaryConfig
from ..errors import UserError

UNNAMED = ("input", "output")
"""Sites of a transcoder whose file does not say where it reads and writes."""


class Given(NamedTuple):
    """What the caller knows and a file may not say: sites, k, and the factor that activations are multiplied by first."""

    site: tuple[str, ...] = ()
    site_out: tuple[str, ...] = ()
    k: int = 0
    scale: float = 0.0


NOTHING = Given()


def single(
    path: Path,
    tensors: Mapping[str, Tensor],
    activation: str,
    given: Given,
    *,
    k: int = 0,
    site: tuple[str, ...] = (),
    site_out: tuple[str, ...] = (),
    centred: bool = False,
    transcoder: bool = False,
    rectified: bool = True,
    matryoshka: tuple[int, ...] = (),
    metadata: dict[str, Any] | None = None,
) -> Dictionary:
    """A dictionary of one site and one written site.

    `centred`: it encodes x - b_dec. `rectified`: ReLU comes before its thresholds. `k` 0: what the caller gives, else 32.
    `matryoshka` as DictionaryConfig has it. UserError, naming the file, for what does not fit together.
    """
    check_shapes(tensors, path)
    latents = len(tensors["W_enc"])
    read, write = given.site or site, given.site_out or site_out
    if transcoder:
        read = read or UNNAMED[:1]
        write = write if write and write != read else UNNAMED[1:]
    config = configured(
        path,
        site=read,
        site_out=write if transcoder else (),
        activation=activation,
        latents=latents,
        k=min(given.k or k or 32, latents),
        matryoshka=matryoshka,
        skip="W_skip" in tensors,
    )
    ready = uniform(tensors)
    if centred != config.is_sae:
        ready = shifted(ready, 1 if config.is_sae else -1)
    if "threshold" in ready and rectified:
        ready["threshold"] = ready["threshold"].clamp_min(0)
    return finished(config, ready, path, metadata)


def configured(path: Path, **fields: Any) -> DictionaryConfig:
    """A DictionaryConfig; what it refuses names the file."""
    try:
        return DictionaryConfig(**fields)
    except UserError as error:
        raise UserError(f"{path} does not describe a dictionary: {error}") from error


def finished(
    config: DictionaryConfig,
    tensors: Mapping[str, Tensor],
    path: Path,
    metadata: dict[str, Any] | None = None,
    widths: Mapping[str, int] | None = None,
) -> Dictionary:
    """The Dictionary of contiguous copies; what it refuses names the file."""
    ready = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    for name, tensor in ready.items():
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"expected weights whose products fit {tensor.dtype} in {path}; {name} overflows; it is damaged"
            )
    try:
        return Dictionary(config, ready, metadata, widths)
    except (UserError, RuntimeError) as error:
        raise UserError(f"{path} holds weights that do not fit together: {error}") from error


def check_shapes(tensors: Mapping[str, Tensor], path: Path) -> None:
    """UserError unless the tensors of a dictionary of one site fit each other."""
    ranks = {name: tensors[name].ndim for name in ("W_enc", "W_dec")}
    if set(ranks.values()) != {2} or 0 in tensors["W_enc"].shape:
        raise UserError(f"expected matrices W_enc and W_dec in {path}; got ranks {ranks}; it is of another form")
    latents, d_in = tensors["W_enc"].shape
    d_out = tensors["W_dec"].shape[1]
    wanted = {"W_enc": (latents, d_in), "W_dec": (latents, d_out), "b_dec": (d_out,), "W_skip": (d_out, d_in)}
    for name, tensor in tensors.items():
        shape = wanted.get(name, (latents,))
        if tuple(tensor.shape) != shape:
            raise UserError(
                f"expected {name} of {list(shape)} numbers in {path} ({latents} latents, {d_in} → {d_out} dimensions); "
                f"got {list(tensor.shape)}; the file is damaged or of another form"
            )


def turned(tensor: Tensor) -> Tensor:
    """A matrix the other way round; anything else as it is, for `check_shapes` to refuse."""
    return tensor.mT if tensor.ndim == 2 else tensor


def uniform(tensors: Mapping[str, Tensor], least: torch.dtype | None = None) -> dict[str, Tensor]:
    """All in the widest type among them, at least in `least`."""
    dtype = least or next(iter(tensors.values())).dtype
    for tensor in tensors.values():
        dtype = torch.promote_types(dtype, tensor.dtype)
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def product(W_enc: Tensor, b_dec: Tensor) -> Tensor:
    """W_enc b_dec, summed in float64 a few rows at a time."""
    return torch.cat([rows.double() @ b_dec.double() for rows in W_enc.split(4096)])


def shifted(tensors: Mapping[str, Tensor], sign: int) -> dict[str, Tensor]:
    """The biases plus `sign` times what b_dec gives in front of the encoder (module header); at least float32."""
    out = uniform(tensors, torch.float32)
    if out["W_enc"].shape[1] != len(out["b_dec"]):
        raise UserError("expected b_dec as wide as what is read, since it is subtracted there; the file is damaged")
    shift = sign * product(out["W_enc"], out["b_dec"])
    out["b_enc"] = (out["b_enc"].double() + shift).to(out["b_enc"].dtype)
    if "b_mag" in out:
        out["b_mag"] = (out["b_mag"].double() + out["r_mag"].double().exp() * shift).to(out["b_mag"].dtype)
    return out


def scaled(tensors: Mapping[str, Tensor], factor_in: float, factor_out: float) -> dict[str, Tensor]:
    """Weights for raw activations from weights for x * factor_in and y * factor_out; the codes stay as they are."""
    out = uniform(tensors, torch.float32)
    out["W_enc"] = out["W_enc"] * factor_in
    out["W_dec"], out["b_dec"] = out["W_dec"] / factor_out, out["b_dec"] / factor_out
    if "W_skip" in out:
        out["W_skip"] = out["W_skip"] * (factor_in / factor_out)
    return out


def in_decoder_norms(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights whose pre-activations are those times the decoder row's norm, and whose decoder rows have length 1."""
    out = uniform(tensors, torch.float32)
    norm = out["W_dec"].norm(dim=1, keepdim=True)
    # A decoder row of norm zero writes nothing, and its latent is never above zero.
    unit = out["W_dec"] / norm.clamp_min(torch.finfo(norm.dtype).tiny)
    return {**out, "W_enc": out["W_enc"] * norm, "b_enc": out["b_enc"] * norm[:, 0], "W_dec": unit}


def constant(like: Tensor, value: float, path: Path) -> Tensor:
    """One number for every latent; UserError where its type cannot hold it."""
    if not abs(value) <= torch.finfo(like.dtype).max:
        raise UserError(
            f"expected a threshold that {like.dtype} can hold in {path}; got {value:.3g}; the file is damaged"
        )
    return torch.full_like(like, value)


def factor(value: Any, path: Path) -> float:
    """A finite factor above zero."""
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise UserError(f"expected a finite factor of activations above zero in {path}; got {str(value)[:60]}; mend it")
    return float(value)
