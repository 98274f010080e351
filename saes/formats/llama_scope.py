"""Llama Scope, in both of its forms. JumpReLU SAEs and transcoders of activations x sqrt(d) / average norm, which is folded.

| form | config | weights | threshold |
|---|---|---|---|
| Llama Scope | `hyperparams.json` | `checkpoints/final.safetensors` | jump_relu_threshold, one number |
| R1-Distill | `config.json` | `sae_weights.safetensors` | log_jumprelu_threshold [latent] |

Tensors: encoder.weight [latent d], encoder.bias, decoder.weight [d latent], decoder.bias. Encodes x, not x - b_dec. The number in
`hyperparams.json` is for unscaled activations, so that here it is multiplied as they are; this is how SAELens reads it,
and was not checked against its authors' code. The factor of R1-Distill is in `dataset_average_activation_norm` of the config or the
tensors, else in SAELens' registry; without it the folder is refused.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import UserError
from .build import Given, check_shapes, constant, factor, scaled, single, turned
from .files import absent, plain, read_file, read_object, whole
from .form import Format, Look

if TYPE_CHECKING:
    from ..dictionary import Dictionary

NAMES = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec", "decoder.bias": "b_dec"}
LOG = "log_jumprelu_threshold"
NORMS = "dataset_average_activation_norm"


def holds(seen: Look) -> bool:
    """One of the two forms."""
    return "hyperparams.json" in seen.files or LOG in seen.names_of("sae_weights.safetensors")


def load(folder: Path, given: Given) -> Dictionary:
    """Read a folder; see the module header."""
    first = (folder / "hyperparams.json").exists()
    about = folder / ("hyperparams.json" if first else "config.json")
    path = folder / ("checkpoints/final.safetensors" if first else "sae_weights.safetensors")
    cfg = read_object(about, f"the {about.name} of a Llama Scope folder")
    found = read_file(path, "a Llama Scope dictionary")
    absent(found, path, [*NAMES, *([] if first else [LOG])], [name for name in found if name.startswith(NORMS)])
    tensors = {NAMES[name]: tensor for name, tensor in plain(found, path, NAMES).items()}
    tensors["W_dec"] = turned(tensors["W_dec"])
    into, out_of = _factors(cfg, found, about, given)
    tensors["threshold"] = (
        constant(tensors["b_enc"].float(), factor(cfg.get("jump_relu_threshold"), about) * into, about)
        if first
        else plain(found, path, [LOG])[LOG].exp()
    )
    check_shapes(tensors, path)
    _check(cfg, tensors, about)
    read, write = (cfg.get(name) for name in ("hook_point_in", "hook_point_out"))
    named = isinstance(read, str), isinstance(write, str) and write != read
    return single(
        path,
        scaled(tensors, into, out_of),
        "jumprelu",
        given,
        k=cfg["top_k"] if type(cfg.get("top_k")) is int and cfg["top_k"] > 0 else 0,
        site=(str(read),) if named[0] else (),
        site_out=(str(write),) if named[1] else (),
        transcoder=named[1],
        metadata={"llama_scope": cfg},
    )


def _factors(cfg: dict[str, Any], found: dict[str, Any], about: Path, given: Given) -> tuple[float, float]:
    norms = cfg.get(NORMS)
    width = whole(cfg.get("d_model"), "d_model", about)
    if isinstance(norms, dict):
        hooks = {"in": cfg.get("hook_point_in"), "out": cfg.get("hook_point_out")}
        into, out_of = (norms.get(end, norms.get(str(hook))) for end, hook in hooks.items())
        root = math.sqrt(width)
        return root / factor(into, about), root / factor(into if out_of is None else out_of, about)
    stored = {name: value for name, value in found.items() if name.startswith(NORMS) and isinstance(value, Tensor)}
    if len(stored) == 1 and next(iter(stored.values())).numel() == 1:
        value = math.sqrt(width) / factor(float(next(iter(stored.values()))), about)
        return value, value
    if given.scale:
        return factor(given.scale, about), factor(given.scale, about)
    if cfg.get("norm_activation") == "inference":
        return 1.0, 1.0
    raise UserError(
        f"expected {NORMS} in {about}, since its activations were scaled by it; got none; load it by its name in SAELens' registry, "
        "which knows the factor"
    )


def _check(cfg: dict[str, Any], tensors: dict[str, Tensor], about: Path) -> None:
    latents, width = tensors["W_enc"].shape
    said = {"d_model": width} | ({"d_sae": latents} if "d_sae" in cfg else {})
    for name, true in said.items():
        if whole(cfg.get(name), name, about) != true:
            raise UserError(
                f"expected {name} = {true} in {about}, as the weights have; got {cfg[name]}; the file is damaged"
            )


FORMAT = Format(
    "llama_scope",
    "hyperparams.json and checkpoints/, or config.json and weights with log_jumprelu_threshold",
    holds,
    load,
)
