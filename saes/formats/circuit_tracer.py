"""circuit-tracer's folders: one transcoder of a set, or all of a cross-layer transcoder as one Dictionary.

| set | files | tensors |
|---|---|---|
| transcoder_set | `layer_{i}.safetensors` | W_enc [latent d], b_enc, W_dec [latent d], b_dec; W_skip, activation_function.threshold, k |
| cross_layer_transcoder | `W_enc_{i}.safetensors` | W_enc_{i} [latent d], b_enc_{i}, b_dec_{i}, optional threshold_{i} |
| | `W_dec_{i}.safetensors` | W_dec_{i} [latent, L - i, d]; entry j writes layer i + j |

`config.yaml` names the sites by their suffix, and may name `activation` and `k`. A set holds a dictionary for each layer: name a
file of it. (circuits.load_transcoders opens the whole of either, mapped from the disk.) circuit-tracer lets a negative
pre-activation among the k of a top-k through; here and in circuits it is ReLU'd. Its thresholds have no ReLU before them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import UserError
from .build import Given, configured, finished, shifted, single, uniform
from .files import absent, plain, read_file, read_yaml, whole
from .form import Format, Look

if TYPE_CHECKING:
    from ..dictionary import Dictionary

SET, CROSS = "transcoder_set", "cross_layer_transcoder"
NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")
THRESHOLDS = ("activation_function.threshold", "threshold")
RULES = {"topk": "topk", "relu": "relu", "jumprelu": "jumprelu", "jump_relu": "jumprelu"}
FILE = re.compile(r"layer_(\d{1,3})\.safetensors")


def holds(seen: Look) -> bool:
    """A folder with its config.yaml, or a file of one layer."""
    if FILE.fullmatch(seen.path.name):
        return set(NAMES) <= seen.names
    return "config.yaml" in seen.files


def load(path: Path, given: Given) -> Dictionary:
    """A file of a set, or the folder of a cross-layer transcoder; see the module header."""
    if not path.is_dir():
        return _one(path, given)
    config = _config(path / "config.yaml")
    if config.get("transcoders"):
        raise UserError(
            f"expected the files of {path} in it; its config.yaml lists others: name one of them, or use circuits.load_transcoders"
        )
    if config["model_kind"] == CROSS:
        return _cross(path, config, given)
    files = sorted(entry.name for entry in path.iterdir() if FILE.fullmatch(entry.name))
    raise UserError(
        f"expected one dictionary; {path} is a set of them, one a layer: name a file of it ({', '.join(files[:3]) or 'none there'}, "
        "...), or open all with circuits.load_transcoders"
    )


def _config(path: Path) -> dict[str, Any]:
    config = read_yaml(path, "a circuit-tracer config.yaml")
    for name in ("feature_input_hook", "feature_output_hook"):
        if not isinstance(config.get(name), str) or not config[name]:
            raise UserError(f"expected {name} in {path}; got {str(config.get(name))[:60]!r}; name the sites")
    kind, rule = config.get("model_kind"), config.get("activation") or ""
    if kind not in (SET, CROSS) or not isinstance(rule, str) or (rule and rule not in RULES):
        raise UserError(
            f"expected model_kind {SET} or {CROSS} and activation {', '.join(RULES)} in {path}; "
            f"got {str(kind)[:60]!r} and {str(rule)[:40]!r}; mend it"
        )
    return config


def _rule(config: dict[str, Any], found: dict[str, Any], path: Path) -> tuple[str, int]:
    """What is said, else what is stored; and k."""
    told = config.get("k") or found.get("k")
    k = whole(told, "k", path) if told is not None else 0
    limited = any(name in found for name in THRESHOLDS)
    rule = RULES.get(config.get("activation") or "", "topk" if "k" in found else "jumprelu" if limited else "relu")
    if (rule == "topk" and not k) or (rule == "jumprelu" and not limited):
        raise UserError(
            f"expected {'k' if rule == 'topk' else 'a threshold'} for {rule} activations of {path}; got none; add it"
        )
    return rule, k


def _one(path: Path, given: Given) -> Dictionary:
    match = FILE.fullmatch(path.name)
    about = path.with_name("config.yaml")
    config = _config(about) if about.exists() else {}
    found = read_file(path, "a transcoder")
    absent(found, path, NAMES, ("W_skip", "k", *THRESHOLDS))
    rule, k = _rule(config, found, path)
    names = [*NAMES, *(["W_skip"] if "W_skip" in found else [])]
    tensors = plain(found, path, names)
    if rule == "jumprelu":
        stored = next(name for name in THRESHOLDS if name in found)
        tensors["threshold"] = plain(found, path, [stored])[stored].flatten()
    if rule == "topk" and tensors["W_enc"].ndim == 2 and k > len(tensors["W_enc"]):
        raise UserError(f"expected k of at most the latents of {path}; got {k}; the file is damaged")
    read, write = _site(config, "input", match), _site(config, "output", match)
    transcodes = not read or read != write
    more: dict[str, Any] = {"k": k, "site": read, "site_out": write, "transcoder": transcodes}
    return single(path, tensors, rule, given, rectified=False, **more)


def _site(config: dict[str, Any], end: str, match: re.Match[str] | None) -> tuple[str, ...]:
    hook = config.get(f"feature_{end}_hook")
    return (f"blocks.{int(match[1])}.{hook}",) if hook and match else ()


def _cross(folder: Path, config: dict[str, Any], given: Given) -> Dictionary:
    found = [name for entry in folder.iterdir() if (name := re.fullmatch(r"W_enc_(\d{1,3})\.safetensors", entry.name))]
    layers = len(found)
    if layers < 2 or {int(match[1]) for match in found} != set(range(layers)):
        raise UserError(
            f"expected W_enc_0.safetensors and so on for every layer in {folder}; got {layers} of them; is one missing?"
        )
    parts = [_layer(folder, layer, layers) for layer in range(layers)]
    latents, d = parts[0]["W_enc"].shape
    if any(tuple(part["W_enc"].shape) != (latents, d) for part in parts):
        raise UserError(
            f"expected layers of one width and as many latents in {folder}; got {[list(p['W_enc'].shape) for p in parts]}"
        )
    kinds = {"threshold" in part for part in parts}
    if len(kinds) > 1:
        raise UserError(f"expected thresholds in all layers of {folder} or in none; got some; is a file damaged?")
    rule, k = _rule(config, parts[0], folder)
    ours = {name: torch.cat([part[name] for part in parts]) for name in ("W_enc", "b_enc", "b_dec")}
    padded = [torch.nn.functional.pad(part["W_dec"].flatten(1), (layer * d, 0)) for layer, part in enumerate(parts)]
    ours["W_dec"] = torch.cat(padded)
    if rule == "jumprelu":
        ours["threshold"] = torch.cat([part["threshold"] for part in parts])
    sites = [
        tuple(f"blocks.{layer}.{config[f'feature_{end}_hook']}" for layer in range(layers))
        for end in ("input", "output")
    ]
    read, write = given.site or sites[0], given.site_out or sites[1]
    k = given.k or k or min(32, latents)
    about = configured(
        folder,
        site=read,
        site_out=write if write != read else (),
        across="cross_layer",
        activation=rule,
        latents=layers * latents,
        k=k,
    )
    ours = uniform(ours)
    return finished(about, shifted(ours, 1) if about.is_sae else ours, folder, {"circuit_tracer": config})


def _layer(folder: Path, layer: int, layers: int) -> dict[str, Tensor]:
    """The tensors of one layer, without its number."""
    encoder, decoder = folder / f"W_enc_{layer}.safetensors", folder / f"W_dec_{layer}.safetensors"
    found = read_file(encoder, "a cross-layer transcoder's encoder")
    wanted = [f"{name}_{layer}" for name in ("W_enc", "b_enc", "b_dec")]
    absent(found, encoder, wanted, [f"threshold_{layer}"])
    tensors = plain(found, encoder, found)
    rows = read_file(decoder, "a cross-layer transcoder's decoder")
    absent(rows, decoder, [f"W_dec_{layer}"])
    tensors |= plain(rows, decoder, rows)
    part = {name.removesuffix(f"_{layer}"): tensor for name, tensor in tensors.items()}
    latents, d = part["W_enc"].shape if part["W_enc"].ndim == 2 else (0, 0)
    shapes = {"b_enc": (latents,), "threshold": (latents,), "b_dec": (d,), "W_dec": (latents, layers - layer, d)}
    for name, shape in shapes.items():
        if name in part and (tuple(part[name].shape) != shape or not latents):
            raise UserError(
                f"expected {name}_{layer} of {list(shape)} in {folder}; got {list(part[name].shape)}; it is damaged"
            )
    return part


FORMAT = Format("circuit_tracer", "config.yaml and layer_0.safetensors or W_enc_0.safetensors", holds, load)
