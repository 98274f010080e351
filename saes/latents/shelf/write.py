"""Write the files of a FeatureStore, the manifest last, so that a folder with one is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ...io import write_json, write_tensors
from ...shards.folder import Shards

FORMAT, VERSION = "unweave.features", 2


def write_store(
    folder: Path,
    manifest: dict[str, Any],
    arrays: dict[str, Tensor],
    shards: Shards,
    vocab: list[str],
    token_rows: Int[Tensor, "vocab"],
) -> None:
    """Write a store of these arrays, the text of `shards`, the vocabulary, and how many kept rows each token has."""
    encoded = [token.encode("utf-8", "surrogatepass") for token in vocab]
    text = {name: getattr(shards, name).int() for name in ("tokens", "positions", "documents")}
    text["vocab_bytes"] = torch.frombuffer(bytearray(b"".join(encoded)), dtype=torch.uint8)
    text["vocab_ends"] = torch.tensor([len(token) for token in encoded]).cumsum(0)
    text["vocab_rows"] = token_rows
    write_tensors(folder / "features.safetensors", arrays)
    write_tensors(folder / "tokens.safetensors", text)
    write_json(folder / "manifest.json", {"format": FORMAT, "version": VERSION, **manifest})
