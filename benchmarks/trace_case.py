"""What both tracers are given: one file with a random Llama-like model, a random transcoder per layer, and a prompt.

Weights are normal with variance 1 / fan-in, gains near 1, so that attention, MLPs and latents all matter and no part
vanishes with depth; every transcoder keeps the k largest of its pre-activations. Names are those of transformers for the
model, `transcoder.LAYER.W_enc` and so on for the transcoders; the sizes are JSON in the file's header.

Nothing here needs more than torch and safetensors, since the other library has an environment of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


class Case(NamedTuple):
    """Sizes: `prompt` tokens, `nodes` feature nodes of the graph; RMS norms, rotary positions, gated MLPs."""

    layers: int
    latents: int
    prompt: int
    nodes: int
    d: int = 256
    heads: int = 4
    mlp: int = 1024
    vocab: int = 8192
    k: int = 40
    context: int = 1024

    def __str__(self) -> str:
        return f"{self.layers} layers, {self.latents} latents, {self.prompt} tokens, {self.nodes} nodes"


class Loaded(NamedTuple):
    """A case read back: `model` by transformers' names, `transcoders` per layer."""

    case: Case
    model: dict[str, Tensor]
    transcoders: list[dict[str, Tensor]]
    prompt: Tensor


def make_case(case: Case, path: Path, seed: int = 0) -> None:
    """Draw the weights and the prompt, which starts with the BOS token 0, and write them to `path`."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {name: _weight(name, shape, draw) for name, shape in _model_shapes(case).items()}
    for layer in range(case.layers):
        shapes = {"W_enc": (case.latents, case.d), "b_enc": (case.latents,), "W_dec": (case.latents, case.d)}
        for name, shape in (shapes | {"b_dec": (case.d,)}).items():
            scale = 0.1 if len(shape) == 1 else case.d**-0.5
            tensors[f"transcoder.{layer}.{name}"] = scale * torch.randn(shape, generator=draw)
    tensors["prompt"] = torch.randint(1, case.vocab, (case.prompt,), generator=draw)
    tensors["prompt"][0] = 0
    save_file(tensors, path, {"case": json.dumps(case._asdict())})


def _weight(name: str, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=draw)
    if len(shape) == 1:
        return 1 + 0.1 * noise
    return noise if "embed" in name else noise * shape[1] ** -0.5


def _model_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    d = case.d
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (case.vocab, d)}
    for layer in range(case.layers):
        block = f"model.layers.{layer}."
        shapes |= {f"{block}self_attn.{name}_proj.weight": (d, d) for name in "qkvo"}
        shapes |= {f"{block}mlp.{name}_proj.weight": (case.mlp, d) for name in ("gate", "up")}
        shapes[f"{block}mlp.down_proj.weight"] = (d, case.mlp)
        shapes |= {f"{block}{name}_layernorm.weight": (d,) for name in ("input", "post_attention")}
    return shapes | {"model.norm.weight": (d,), "lm_head.weight": (case.vocab, d)}


def load_case(path: Path) -> Loaded:
    """Read a case; its tensors are in memory of their own, so that no page of the file stays resident."""
    with safe_open(path, "pt") as file:
        case = Case(**json.loads(file.metadata()["case"]))
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    transcoders = [
        {name: tensors.pop(f"transcoder.{layer}.{name}") for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        for layer in range(case.layers)
    ]
    return Loaded(case, tensors, transcoders, tensors.pop("prompt"))
