"""Parts → a folder that circuit-tracer loads; the form is told in transcoders.py.

What the form cannot hold is refused, never approximated. Two things are said differently: a part without b_dec gets one of
zeros; and an SAE's -W_enc b_dec stays inside b_enc, where a Part has it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...saes.errors import UserError
from ...saes.io import atomic_path, write_tensors
from ...saes.keep import KeepRule
from ..parts import Part


def save_transcoders(parts: list[Part], folder: str | Path, *, model_name: str = "") -> Path:
    """Write parts as a circuit-tracer folder, `config.yaml` last; `load_transcoders` gives back equal tensors.

    Parts that write one layer each become a transcoder_set, others a cross_layer_transcoder. The exclusion rules of their training go
    under the key `unweave`. UserError for what the form cannot hold (gaps between layers, widths or rules that differ,
    a cross-layer W_skip) and for a folder that is not empty.
    """
    import yaml

    folder, parts = Path(folder), sorted(parts, key=lambda part: part.layer)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"expected a new or empty folder; {folder} is not; choose another name")
    config = _config_of(parts, model_name)
    for part in parts:
        for name, tensors in _tensors(part, len(parts), config).items():
            write_tensors(folder / name, tensors)
    with atomic_path(folder / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return folder


def _suffixes(parts: list[Part]) -> tuple[str, set[str]]:
    reads = {part.read.split(".", 2)[2] for part in parts}
    return ", ".join(sorted(reads)), {site.split(".", 2)[2] for part in parts for site in part.W_dec}


def _config_of(parts: list[Part], model_name: str) -> dict[str, Any]:
    """The config of these parts; UserError when one folder cannot hold them."""
    read, writes = _suffixes(parts)
    layers = list(range(len(parts)))
    crossing = any(len(part.W_dec) > 1 for part in parts)
    written = [[int(site.split(".")[1]) for site in part.W_dec] for part in parts]
    kinds, widths = {part.rule.kind for part in parts}, {tuple(part.W_enc.shape) for part in parts}
    ranks = {part.rule.k for part in parts}
    reasons = {
        f"layers 0 to {len(parts) - 1}, one part each; got {[part.layer for part in parts]}": not parts
        or [part.layer for part in parts] != layers,
        f"one read and one written site; got {read} and {sorted(writes)}": len(writes) != 1 or ", " in read,
        f"every part to write its own layer{' and all later ones' if crossing else ''}; got {written}": written
        != ([layers[i:] for i in layers] if crossing else [[i] for i in layers]),
        f"one width; got {sorted(widths)}": len(widths) != 1,
        f"one rule of activation; got {sorted(kinds)} with k {sorted(ranks)}": len(kinds) != 1 or len(ranks) != 1,
        "no W_skip in a cross-layer transcoder": crossing and any(part.W_skip is not None for part in parts),
        "b_dec at its own layer only": any(
            int(site.split(".")[1]) != part.layer for part in parts for site in part.b_dec
        ),
    }
    for wanted, broken in reasons.items():
        if broken:
            raise UserError(f"a circuit-tracer folder needs {wanted}; leave out or add parts")
    model = next((part.model for part in parts if part.model), None) or {}
    config: dict[str, Any] = {
        "model_name": model_name or str(model.get("name") or ""),
        "model_kind": "cross_layer_transcoder" if crossing else "transcoder_set",
        "feature_input_hook": read,
        "feature_output_hook": writes.pop(),
    }
    if kinds == {"topk"}:
        config |= {"activation": "topk", "k": parts[0].rule.k}
    keep = {str(part.layer): part.keep.to_dict() for part in parts if part.keep != KeepRule()}
    return config | ({"unweave": {"keep": keep}} if keep else {})


def _tensors(part: Part, layers: int, config: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """File name -> tensors of one part."""
    layer, decoders = part.layer, list(part.W_dec.values())
    b_dec = next(iter(part.b_dec.values()), None)
    shared = {"W_enc": part.W_enc, "b_enc": part.b_enc}
    shared["b_dec"] = decoders[0].new_zeros(decoders[0].shape[1]) if b_dec is None else b_dec
    if config["model_kind"] == "transcoder_set":
        optional = {"W_skip": part.W_skip, "activation_function.threshold": part.rule.threshold}
        optional = {name: tensor for name, tensor in optional.items() if tensor is not None}
        return {f"layer_{layer}.safetensors": shared | {"W_dec": decoders[0]} | optional}
    if part.rule.threshold is not None:
        shared["threshold"] = part.rule.threshold
    return {
        f"W_enc_{layer}.safetensors": {f"{name}_{layer}": tensor for name, tensor in shared.items()},
        f"W_dec_{layer}.safetensors": {f"W_dec_{layer}": torch.stack(decoders, dim=1)},
    }
