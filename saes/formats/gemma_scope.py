"""Gemma Scope 1 and 2: JumpReLU SAEs and transcoders that encode x, not x - b_dec; in 2 also skip and cross-layer ones.

| | file | encoder | decoder | besides |
|---|---|---|---|---|
| 1 | params.npz | W_enc [d latent] | W_dec [latent d] | b_enc, b_dec, threshold |
| 2 | params.safetensors, config.json | w_enc [d latent] | w_dec [latent d] | affine_skip_connection [d_in d_out] (y += x S) |
| 2 CLT | a folder of one file a layer | w_enc [d latent] | w_dec [latent layer d], zero before its own | |

Sites come from `hf_hook_point_in` and `hf_hook_point_out`, else from the folders' names as the release has them
(`gemma-scope-2b-pt-res/layer_20/...`, `transcoder_all/layer_3_...`), else from the caller. SAEs of the embedding were trained on
activations over sqrt(d), which is folded into the matrices. A cross-layer dictionary with affine skips is refused: here they have none.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import UserError
from .build import Given, check_shapes, configured, finished, single, turned, uniform
from .files import absent, plain, read_file, read_object
from .form import Format, Look
from .places import layer_in, site_of_module, sparsity_in

if TYPE_CHECKING:
    from ..dictionary import Dictionary

NAMES = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
LAYER_FILE = re.compile(r".*layer_(\d{1,3})[^/]*\.safetensors")
KINDS = {
    "transcoder": ("mlp.hook_in", "hook_mlp_out"),
    "clt": ("mlp.hook_in", "hook_mlp_out"),
    "att": ("attn.hook_z", ""),
    "mlp": ("hook_mlp_out", ""),
    "res": ("hook_resid_post", ""),
}
"""What a folder's name says of the sites, those that contain others first."""


def load_first(path: Path, given: Given) -> Dictionary:
    """Gemma Scope 1: a params.npz, or the folder that holds it."""
    path = path / "params.npz" if path.is_dir() else path
    found = read_file(path, "Gemma Scope's params.npz")
    absent(found, path, NAMES)
    tensors = plain(found, path, NAMES)
    tensors["W_enc"] = turned(tensors["W_enc"])
    check_shapes(tensors, path)
    if "embedding" in path.parts:
        scale = tensors["W_enc"].shape[1] ** 0.5
        tensors |= {"W_enc": tensors["W_enc"] / scale, "W_dec": tensors["W_dec"] * scale}
        return _single(path, tensors, given, ("hook_embed",), ())
    return _single(path, tensors, given, *_places(path))


def load_second(path: Path, given: Given) -> Dictionary:
    """Gemma Scope 2: a file, the folder that holds params.safetensors, or a folder of a CLT's files."""
    if path.is_dir() and not (path / "params.safetensors").exists():
        return _cross_layer(path, given)
    path = path / "params.safetensors" if path.is_dir() else path
    tensors = _read(path)
    if tensors["W_dec"].ndim == 3:
        raise UserError(
            f"expected one layer's decoder in {path}; it writes {tensors['W_dec'].shape[1]} layers: load the folder of all of them"
        )
    about = path.with_name("config.json")
    cfg = read_object(about, "Gemma Scope's config.json") if about.exists() else {}
    if cfg.get("architecture", "jump_relu") != "jump_relu":
        raise UserError(f"expected architecture jump_relu in {about}; got {str(cfg['architecture'])[:40]!r}")
    if cfg.get("affine_connection", "W_skip" in tensors) is not ("W_skip" in tensors):
        raise UserError(
            f"expected affine_skip_connection in {path} if and only if {about} says affine_connection; it is damaged"
        )
    check_shapes(tensors, path)
    read, write = (site_of_module(cfg.get(name)) for name in ("hf_hook_point_in", "hf_hook_point_out"))
    if not read:
        read, write = _places(path)
    return _single(path, tensors, given, read, write, {"gemma_scope": cfg} if cfg else None)


def _single(
    path: Path,
    tensors: dict[str, Tensor],
    given: Given,
    read: tuple[str, ...],
    write: tuple[str, ...],
    metadata: dict[str, Any] | None = None,
) -> Dictionary:
    write = () if write == read else write
    transcodes = bool(write) or "W_skip" in tensors or tensors["W_enc"].shape[1] != tensors["W_dec"].shape[1]
    return single(
        path,
        tensors,
        "jumprelu",
        given,
        k=sparsity_in(path),
        site=read,
        site_out=write,
        transcoder=transcodes,
        metadata=metadata,
    )


def _read(path: Path) -> dict[str, Tensor]:
    found = read_file(path, "Gemma Scope's params.safetensors")
    names = {name: name.replace("W_", "w_") for name in NAMES}
    if "affine_skip_connection" in found:
        names["W_skip"] = "affine_skip_connection"
    absent(found, path, names.values())
    tensors = plain(found, path, names.values())
    ours = {name: tensors[theirs] for name, theirs in names.items()}
    return {name: turned(tensor) if name in ("W_enc", "W_skip") else tensor for name, tensor in ours.items()}


def _places(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    layer, text = layer_in(path), str(path).lower()
    kind = next((kind for kind in KINDS if re.search(rf"(?:^|[-_/]){kind}", text)), None)
    if layer is None or kind is None:
        return (), ()
    read, write = KINDS[kind]
    return (f"blocks.{layer}.{read}",), (f"blocks.{layer}.{write}",) if write else ()


def _cross_layer(folder: Path, given: Given) -> Dictionary:
    files = {int(match[1]): path for path in folder.iterdir() if (match := LAYER_FILE.fullmatch(path.name))}
    layers = len(files)
    if layers < 2 or set(files) != set(range(layers)):
        raise UserError(
            f"expected a file for each of layers 0 to {max(files, default=1)} in {folder}; got {sorted(files)}"
        )
    parts = [_read(files[layer]) for layer in range(layers)]
    latents, d = parts[0]["W_enc"].shape if parts[0]["W_enc"].ndim == 2 else (0, 0)
    shapes = {
        "W_enc": (latents, d),
        "b_enc": (latents,),
        "threshold": (latents,),
        "W_dec": (latents, layers, d),
        "b_dec": (d,),
    }
    for layer, part in enumerate(parts):
        if "W_skip" in part:
            raise UserError(
                f"expected no affine_skip_connection in {files[layer]}: a cross-layer dictionary has none here"
            )
        for name, shape in shapes.items():
            if tuple(part[name].shape) != shape or not latents:
                raise UserError(
                    f"expected {name} of {list(shape)} in {files[layer]}; got {list(part[name].shape)}; it is damaged"
                )
        if part["W_dec"][:, :layer].any():
            raise UserError(
                f"expected {files[layer]} to write its own layer and later ones only; it writes earlier ones too"
            )
    ours = {name: torch.cat([part[name] for part in parts]) for name in ("W_enc", "b_enc", "b_dec", "threshold")}
    ours["W_dec"] = torch.cat([part["W_dec"].flatten(1) for part in parts])
    ours["threshold"] = ours["threshold"].clamp_min(0)
    config = configured(
        folder,
        site=given.site or tuple(f"blocks.{layer}.mlp.hook_in" for layer in range(layers)),
        site_out=given.site_out or tuple(f"blocks.{layer}.hook_mlp_out" for layer in range(layers)),
        across="cross_layer",
        activation="jumprelu",
        latents=layers * latents,
        k=min(given.k or sparsity_in(folder) or 32, latents),
    )
    return finished(config, uniform(ours), folder)


def holds_first(seen: Look) -> bool:
    """params.npz, or an npz with its names."""
    return "params.npz" in seen.files or (seen.path.suffix == ".npz" and "threshold" in seen.names)


def holds_second(seen: Look) -> bool:
    """w_enc in the file, in params.safetensors, or in one of the files of a folder of layers."""
    files = sorted(name for name in seen.files if name == "params.safetensors" or LAYER_FILE.fullmatch(name))
    return "w_enc" in seen.names or bool(files and "w_enc" in seen.names_of(files[0]))


FIRST = Format("gemma_scope", "params.npz", holds_first, load_first)
SECOND = Format(
    "gemma_scope_2", "params.safetensors with w_enc, or a folder of a CLT's layers", holds_second, load_second
)
