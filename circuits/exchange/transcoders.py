"""Transcoders that others trained, as Parts: the folders of circuit-tracer, Gemma Scope, sparsify and SAELens.

A circuit-tracer folder is a `config.yaml` beside tensors. It names the sites by their suffix (`mlp.hook_in` is
`blocks.L.mlp.hook_in`; TransformerLens 3 names stay as they are, for the tracer to resolve) and the rule of activation:

| set | files | tensors |
|---|---|---|
| transcoder_set | `layer_{i}.safetensors` | W_enc [F d], b_enc, W_dec [F d], b_dec; optional W_skip, threshold, k |
| cross_layer_transcoder | `W_enc_{i}.safetensors` | W_enc_{i} [F d], b_enc_{i}, b_dec_{i}, optional threshold_{i} |
| | `W_dec_{i}.safetensors` | W_dec_{i} [F, L - i, d]; entry j writes layer i + j |

`transcoders:` in it lists, a layer each, other files or folders, of any form that transcoder_files.py knows; `hf://`
entries come from the hub's cache or the hub. The rule is what `activation` (and `k`) says, else JumpReLU where a
threshold is stored, else ReLU. Top-k is ReLU'd here; circuit-tracer lets a negative pre-activation among the k through.

A cross-layer transcoder becomes one Part per layer that it reads. b_dec of layer i is written by part i alone, so that the sum
of all parts holds it once. Tensors keep their dtype and are mapped from the disk, not read, until they are used.
Nothing is unpickled: YAML is read by the safe loader, npz without objects, and `.pt` files are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...saes import Dictionary
from ...saes.errors import UserError
from ...saes.keep import KeepRule
from ..parts import Part
from .transcoder_files import Loaded, Place, checked, dictionary_folder, from_file, from_tensors, mapped, rule_of

KINDS = {"transcoder_set": "layer_", "cross_layer_transcoder": "W_enc_"}


@dataclass(frozen=True)
class Config:
    """What `config.yaml` says, checked."""

    folder: Path
    kind: str
    read: str
    write: str
    activation: str
    k: int
    transcoders: list[str]
    extra: dict[str, Any]

    def place(self, layer: int) -> Place:
        """Where the transcoder of a layer reads and writes."""
        return Place(layer, f"blocks.{layer}.{self.read}", f"blocks.{layer}.{self.write}")


def open_dictionaries(path: str | Path) -> list[Part | Dictionary]:
    """What a path holds: a dictionary of ours, a set of transcoders of circuit-tracer's form, or a folder of dictionaries."""
    path = Path(path)
    if path.suffix in (".pt", ".pth", ".pkl"):
        raise UserError(
            f"expected a dictionary folder; {path} is a pickle, which can run code when it is opened; "
            "export it as safetensors where it was made"
        )
    if not path.is_dir():
        raise UserError(f"expected a dictionary folder at {path}; there is none; check the path")
    if (path / "config.yaml").exists():
        return list(load_transcoders(path))
    if (path / "cfg.json").exists():
        return [dictionary_folder(path)]
    inner = sorted((folder for folder in path.iterdir() if (folder / "cfg.json").exists()), key=_natural)
    if not inner:
        raise UserError(
            f"expected config.yaml or cfg.json in {path}, or folders with one; got neither; circuit-tracer's config.yaml names "
            "model_kind, feature_input_hook and feature_output_hook: write one beside the tensors"
        )
    return [dictionary_folder(folder) for folder in inner]


def load_transcoders(folder: str | Path) -> list[Part]:
    """The transcoders of a circuit-tracer folder, in order of layers. UserError, naming the file, for what is malformed."""
    config = _read_config(Path(folder))
    if config.transcoders:
        found = dict(enumerate(_local(entry, config.folder) for entry in config.transcoders))
    else:
        prefix = KINDS[config.kind]
        found = {int(match[1]): path for path in config.folder.iterdir() if (match := _numbered(prefix, path.name))}
    if not found:
        raise UserError(
            f"expected {KINDS[config.kind]}0.safetensors, ... or a list `transcoders` in {config.folder / 'config.yaml'}; "
            "got neither; is the download complete?"
        )
    if config.kind == "cross_layer_transcoder":
        return [_clt_part(config, layer, path, found) for layer, path in sorted(found.items())]
    return [_one_part(config, layer, path) for layer, path in sorted(found.items())]


def _natural(path: Path) -> list[Any]:
    return [int(piece) if piece.isdecimal() else piece for piece in re.split(r"(\d+)", path.name)]


def _numbered(prefix: str, name: str) -> re.Match[str] | None:
    return re.fullmatch(rf"{prefix}(\d{{1,4}})\.safetensors", name)


def _read_config(folder: Path) -> Config:
    import yaml

    path = folder / "config.yaml"
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"expected a circuit-tracer config.yaml at {path}; could not read it ({error})") from error
    if not isinstance(data, dict) or data.get("model_kind") not in KINDS:
        kind = data.get("model_kind") if isinstance(data, dict) else type(data).__name__
        raise UserError(f"expected model_kind {' or '.join(KINDS)} in {path}; got {kind!r}; mend it")
    entries, extra = data.get("transcoders") or [], data.get("unweave") or {}
    read, write = (data.get(name) for name in ("feature_input_hook", "feature_output_hook"))
    if not isinstance(read, str) or not isinstance(write, str) or not read or not write:
        raise UserError(
            f"expected feature_input_hook and feature_output_hook in {path}; got {read!r} and {write!r}; name the sites"
        )
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise UserError(f"expected `transcoders` in {path} as a list of paths; got something else; mend it")
    activation, k = data.get("activation") or "", data.get("k") or 0
    names = {"": "", "topk": "topk", "relu": "relu", "jumprelu": "jumprelu", "jump_relu": "jumprelu"}
    if activation not in names or type(k) is not int or not isinstance(extra, dict):
        raise UserError(f"expected activation topk (with k), relu or jumprelu in {path}; got {activation!r}, k {k!r}")
    return Config(folder, data["model_kind"], read, write, names[activation], k, entries, extra)


def _local(entry: str, folder: Path) -> Path:
    """The local path of an entry of `transcoders`; what is on the hub is taken from its cache or fetched."""
    if not entry.startswith("hf://"):
        return folder / entry
    match = re.fullmatch(r"hf://([^/?]+/[^/?]+)/([^?]+?)/?(?:\?revision=([^&]+))?", entry)
    if match is None:
        raise UserError(f"expected hf://owner/name/path?revision=...; got {entry!r}; mend config.yaml")
    repository, inside, revision = match.groups()
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise UserError(f"expected a local copy of {entry}; huggingface_hub is not installed; download it") from error
    try:
        copy = snapshot_download(repository, revision=revision, allow_patterns=[inside, f"{inside}/*"])
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise UserError(
            f"expected {entry} in the hub's cache or on the hub; got neither ({error}); "
            "download it and name the local file in config.yaml"
        ) from error
    return Path(copy) / inside


def _one_part(config: Config, layer: int, path: Path) -> Part:
    return _part(config, from_file(path, config.place(layer)), layer, path)


def _part(config: Config, loaded: Loaded, layer: int, path: Path) -> Part:
    keep = (config.extra.get("keep") or {}).get(str(layer)) or {}
    try:
        rule = KeepRule.from_dict(keep)
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"expected an exclusion rule for layer {layer} in config.yaml; got {keep!r}; mend it"
        ) from error
    return checked(loaded, rule_of(loaded, config.activation, config.k, path), path, keep=rule, folder=config.folder)


def _clt_part(config: Config, layer: int, path: Path, found: dict[int, Path]) -> Part:
    """Part `layer` of a cross-layer transcoder of as many layers as there are files."""
    layers = len(found)
    if set(found) != set(range(layers)):
        raise UserError(
            f"expected all of layers 0 to {max(found)} in {config.folder}; got {sorted(found)}; add the rest"
        )
    tensors = mapped(path)
    if not config.transcoders:
        decoder = path.with_name(f"W_dec_{layer}.safetensors")
        both = tensors | mapped(decoder)
        tensors = {name.removesuffix(f"_{layer}"): tensor for name, tensor in both.items()}
        skip = 0
    else:
        skip = layer
    loaded = from_tensors(tensors, config.place(layer), path, decoder_layers=True)
    stack = loaded.W_dec
    if stack.ndim != 3 or stack.shape[1] - skip != layers - layer:
        raise UserError(
            f"expected decoders to {layers - layer} layers for layer {layer} of {layers} in {path.parent}; "
            f"got W_dec of shape {list(stack.shape)}; is a layer missing?"
        )
    sites = {config.place(layer + j).write: stack[:, skip + j] for j in range(layers - layer)}
    return _part(config, loaded._replace(decoders=sites), layer, path)
