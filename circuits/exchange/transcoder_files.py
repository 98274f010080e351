"""The tensors of one transcoder or SAE, whatever it is called by and whichever way round it lies.

Told apart by their names, not by where they come from:

| form | encoder | decoder | else |
|---|---|---|---|
| circuit-tracer | W_enc [F d] | W_dec [F d] | activation_function.threshold, W_skip [d d] (y += W_skip x), k |
| Gemma Scope 1 (`params.npz`) | W_enc [d F] | W_dec [F d] | threshold |
| Gemma Scope 2 | w_enc [d F] | w_dec [F d], cross-layer [F L d] | threshold, affine_skip_connection [d d] (y += x S) |
| sparsify (`cfg.json`, `sae.safetensors`) | encoder.weight [F d], encoder.bias | W_dec [F d] | W_skip; k in cfg.json |
| SAELens (`cfg.json`, `sae_weights.safetensors`) | W_enc [d F] | W_dec [F d] | threshold, W_skip; rule in cfg.json |

sparsify's SAEs, and SAELens' where `apply_b_dec_to_input` says so, encode x - b_dec: that is folded into b_enc.
What is refused, since it would give other numbers: group-max encoders, normalised or reshaped activations.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...saes import Dictionary
from ...saes.errors import UserError
from ...saes.formats.saelens import OWN
from ...saes.io import map_tensors, read_json
from ...saes.sites import MODULE, layer_of
from ..parts import Part, Rule

SAELENS = {
    "standard": "relu",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}


class Place(NamedTuple):
    """A layer and the sites that its transcoder reads and writes."""

    layer: int
    read: str
    write: str


class Loaded(NamedTuple):
    """Tensors in our layout; `W_dec` may be [F layer d], then `decoders` says what it writes."""

    place: Place
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    threshold: Tensor | None = None
    W_skip: Tensor | None = None
    k: int = 0
    activation: str = ""
    decoders: dict[str, Tensor] | None = None


def mapped(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, mapped from the disk; those of an npz are read, without pickled objects."""
    try:
        return _npz(path) if path.suffix == ".npz" else map_tensors(path)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"expected a transcoder's tensors at {path}; could not read them ({error}); download it again"
        ) from error


def _npz(path: Path) -> dict[str, Tensor]:
    import numpy as np

    # numpy's default refuses pickled objects.
    with np.load(path) as arrays:
        return {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in arrays.files}


def from_file(path: Path, place: Place) -> Loaded:
    """One transcoder from a tensor file or from a folder of sparsify or SAELens."""
    if path.is_dir():
        for name, read in (("sae.safetensors", _sparsify), ("sae_weights.safetensors", _saelens)):
            if (path / name).exists():
                return read(path, place)
        raise UserError(f"expected sae.safetensors or sae_weights.safetensors in {path}; got neither; is it complete?")
    return from_tensors(mapped(path), place, path)


def from_tensors(tensors: dict[str, Tensor], place: Place, path: Path, *, decoder_layers: bool = False) -> Loaded:
    """Tensors of circuit-tracer's or Gemma Scope's names, in our layout."""
    gemma = "w_enc" in tensors
    turned = gemma or path.suffix == ".npz"
    names = ("w_enc", "b_enc", "w_dec", "b_dec") if gemma else ("W_enc", "b_enc", "W_dec", "b_dec")
    absent = [name for name in names if name not in tensors]
    if absent:
        raise UserError(f"expected {', '.join(names)} in {path}; {', '.join(absent)} is missing; is it a transcoder?")
    W_enc, b_enc, W_dec, b_dec = (tensors[name] for name in names)
    ranks = [W_enc.ndim, b_enc.ndim, W_dec.ndim, b_dec.ndim]
    if ranks != [2, 1, 3 if decoder_layers else 2, 1]:
        raise UserError(f"expected a matrix W_enc and W_dec and vectors b_enc and b_dec in {path}; got ranks {ranks}")
    skip = tensors.get("affine_skip_connection")
    skip = tensors.get("W_skip") if skip is None else skip.mT
    threshold = tensors.get("activation_function.threshold", tensors.get("threshold"))
    k = int(tensors["k"]) if "k" in tensors and tensors["k"].numel() == 1 else 0
    return Loaded(place, W_enc.mT if turned else W_enc, b_enc, W_dec, b_dec, threshold, skip, k)


def rule_of(loaded: Loaded, activation: str, k: int, path: Path) -> Rule:
    """The activation rule: what is said, else what is stored."""
    stored = "topk" if loaded.k else "jumprelu" if loaded.threshold is not None else "relu"
    kind = activation or loaded.activation or stored
    k = k or loaded.k
    if (kind == "topk" and k < 1) or (kind == "jumprelu" and loaded.threshold is None):
        lacking = "k" if kind == "topk" else "a threshold"
        raise UserError(f"expected {lacking} for {kind} activations of {path}; got none; add it to the config")
    if kind == "topk":
        return Rule("topk", k=k)
    return Rule("jumprelu", threshold=loaded.threshold) if kind == "jumprelu" else Rule("relu")


def checked(loaded: Loaded, rule: Rule, path: Path, **about: Any) -> Part:
    """The Part of these tensors; UserError, naming the file, when their shapes or dtypes do not fit together."""
    W_enc, decoders = loaded.W_enc, loaded.decoders or {loaded.place.write: loaded.W_dec}
    latents, width = W_enc.shape
    out = next(iter(decoders.values())).shape[-1]
    wanted = {"b_enc": (loaded.b_enc, (latents,)), "b_dec": (loaded.b_dec, (out,))}
    wanted |= {f"W_dec to {site}": (rows, (latents, out)) for site, rows in decoders.items()}
    wanted |= {"threshold": (rule.threshold, (latents,)), "W_skip": (loaded.W_skip, (out, width))}
    for name, (tensor, shape) in {"W_enc": (W_enc, (latents, width)), **wanted}.items():
        if tensor is not None and (tuple(tensor.shape) != shape or not tensor.is_floating_point()):
            raise UserError(
                f"expected {name} of {list(shape)} numbers in {path} ({latents} latents of {width} dimensions); "
                f"got {list(tensor.shape)} of {tensor.dtype}; the file is damaged or of another form"
            )
    b_dec = {loaded.place.write: loaded.b_dec}
    return Part(loaded.place.read, W_enc, loaded.b_enc, decoders, b_dec, rule, loaded.W_skip, name=path.name, **about)


def dictionary_folder(folder: Path) -> Part | Dictionary:
    """A folder with cfg.json: a dictionary of ours, SAELens' top-k or gated one, another one of SAELens', or sparsify's."""
    cfg = read_json(folder / "cfg.json", "the cfg.json of a dictionary")
    architecture, metadata = str(cfg.get("architecture")), cfg.get("metadata")
    is_ours = architecture.startswith(OWN) or (isinstance(metadata, dict) and "unweave_config" in metadata)
    if is_ours or architecture in ("topk", "gated"):
        return Dictionary.load(folder)
    place = _saelens_place(cfg, folder) if "architecture" in cfg else _sparsify_place(cfg, folder)
    loaded = from_file(folder, place)
    return checked(loaded, rule_of(loaded, "", 0, folder), folder, folder=folder)


def _sparsify_place(cfg: dict[str, Any], folder: Path) -> Place:
    match = MODULE.fullmatch(folder.name)
    if match is None:
        raise UserError(
            f"expected a sparsify folder named by its module, such as layers.3.mlp; got {folder.name}; rename it, or name the sites "
            "in a config.yaml (docs: circuit-tracer folders)"
        )
    layer, part, _ = match.groups()
    branch = {None: "hook_resid_post", "mlp": "mlp.hook_out"}.get(part, "attn.hook_out")
    transcodes = _transcodes(cfg)
    if transcodes and part is None:
        raise UserError(f"expected a transcoder of an MLP or of attention; {folder} is of a whole block; leave it out")
    read = branch.replace("hook_out", "hook_in") if transcodes else branch
    return Place(int(layer), f"blocks.{layer}.{read}", f"blocks.{layer}.{branch}")


def _sparsify(folder: Path, place: Place) -> Loaded:
    cfg = read_json(folder / "cfg.json", "the cfg.json of a sparsify folder")
    tensors = mapped(folder / "sae.safetensors")
    if cfg.get("activation", "topk") != "topk" or type(cfg.get("k")) is not int:
        raise UserError(f"expected topk activations and k in {folder / 'cfg.json'}; got {cfg.get('activation')!r}")
    renamed = {"encoder.weight": "W_enc", "encoder.bias": "b_enc"}
    tensors = {renamed.get(name, name): tensor for name, tensor in tensors.items() if name != "k"}
    loaded = from_tensors(tensors, place, folder / "sae.safetensors")._replace(k=cfg["k"])
    return loaded if _transcodes(cfg) else _centred(loaded, folder)


def _transcodes(cfg: dict[str, Any]) -> bool:
    """Folders from before the flag was there are transcoders where they have a skip path."""
    return bool(cfg.get("transcode", cfg.get("skip_connection", False)))


def _centred(loaded: Loaded, folder: Path) -> Loaded:
    """W_enc (x - b_dec) + b_enc as W_enc x + b_enc'."""
    if loaded.W_enc.shape[1] != len(loaded.b_dec):
        raise UserError(f"expected b_dec as wide as W_enc in {folder}, which encodes x - b_dec; the file is damaged")
    return loaded._replace(b_enc=loaded.b_enc - loaded.W_enc @ loaded.b_dec)


def _saelens_place(cfg: dict[str, Any], folder: Path) -> Place:
    metadata = cfg.get("metadata")
    named = {**cfg, **metadata} if isinstance(metadata, dict) else cfg
    read = str(named.get("hook_name"))
    write = str(named.get("hook_name_out") or read)
    layer = layer_of(read)
    if layer is None or layer_of(write) is None:
        raise UserError(f"expected hook_name of a block in {folder / 'cfg.json'}; got {read}; name the site")
    return Place(layer, read, write)


def _saelens(folder: Path, place: Place) -> Loaded:
    cfg = read_json(folder / "cfg.json", "the cfg.json of a SAELens folder")
    architecture = cfg.get("architecture")
    if architecture not in SAELENS:
        raise UserError(f"expected an architecture of {', '.join(SAELENS)} in {folder}; got {architecture!r}")
    plain = {"normalize_activations": "none", "reshape_activations": "none", "rescale_acts_by_decoder_norm": False}
    for key, wanted in plain.items():
        if cfg.get(key, wanted) != wanted:
            raise UserError(
                f"expected {key} = {wanted!r} in {folder}; got {cfg[key]!r}, which is not supported; fold it in"
            )
    tensors = mapped(folder / "sae_weights.safetensors")
    tensors = (
        {**tensors, "W_enc": tensors["W_enc"].mT} if "W_enc" in tensors and tensors["W_enc"].ndim == 2 else tensors
    )
    loaded = from_tensors(tensors, place, folder / "sae_weights.safetensors")
    loaded = loaded._replace(activation=SAELENS[architecture], k=cfg["k"] if type(cfg.get("k")) is int else 0)
    if loaded.threshold is not None:
        # SAELens applies ReLU first, so that a negative threshold lets nothing negative through.
        loaded = loaded._replace(threshold=loaded.threshold.clamp_min(0))
    centred = "transcoder" not in architecture and cfg.get("apply_b_dec_to_input", True)
    return _centred(loaded, folder) if centred else loaded
