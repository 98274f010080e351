"""Change named features in the real model and let everything else respond.

`steer` multiplies the activations of neurons and latents by a number at their own positions, `ablate` by 0. Attention
patterns, norms and all later MLPs are free, so that the effect is the model's, not the graph's:

    neuron   mlp.hook_post[p, j] *= scale
    latent   mlp.hook_out[p]     += (scale - 1) a_j W_dec[j],   a_j encoded from what the MLP reads in this very run

Only neurons and latents can be changed; leaves (tokens, errors, rest, ...) are refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..saes.errors import UserError
from .graph import Node
from .trace import prompt_tokens, transcoders_by_layer

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class Place(NamedTuple):
    """One feature in one row of a batch."""

    row: int
    position: int
    index: int


def ablate(
    model: TransformerBridge, prompt: str | Tensor, nodes: Iterable[Node], dictionaries: Sequence[Any] | None = None
) -> Float[Tensor, "token vocab"]:
    """Logits of `prompt` with the features `nodes` set to zero at their positions, all else free to respond."""
    return steer(model, prompt, nodes, 0.0, dictionaries)


def steer(
    model: TransformerBridge,
    prompt: str | Tensor,
    nodes: Iterable[Node],
    scale: float,
    dictionaries: Sequence[Any] | None = None,
) -> Float[Tensor, "token vocab"]:
    """Logits of `prompt` with the activations of `nodes` multiplied by `scale` (0 ablates, -1 negates, 1 changes nothing).

    `dictionaries`: those that the latents among `nodes` belong to. Raises UserError for nodes that are no features of
    this model or lie outside the prompt.
    """
    tokens = prompt_tokens(model, prompt)
    return run_edited(model, tokens, [list(nodes)], scale, transcoders_by_layer(model, dictionaries or []))[0][0]


def run_edited(
    model: TransformerBridge,
    tokens: Int[Tensor, "token"],
    sets: Sequence[Sequence[Node]],
    scale: float,
    by_layer: dict[int, Any],
) -> tuple[Float[Tensor, "set token vocab"], Float[Tensor, "set vocab"]]:
    """One batch, a row per set of nodes: the model's logits, and the last position's before any soft-cap."""
    neurons, latents = _group(model, tokens, sets, by_layer)
    before_cap: list[Tensor] = []
    hooks: list[Any] = [("hook_unembed", lambda tensor, hook: before_cap.append(tensor[:, -1]))]
    hooks += [(f"blocks.{layer}.mlp.hook_post", _neuron_hook(places, scale)) for layer, places in neurons.items()]
    for layer, places in latents.items():
        read, write = _latent_hooks(places, scale, by_layer[layer])
        hooks += [(f"blocks.{layer}.mlp.hook_in", read), (f"blocks.{layer}.mlp.hook_out", write)]
    with torch.no_grad():
        logits = model.run_with_hooks(tokens.repeat(len(sets), 1), fwd_hooks=hooks)
    return logits, before_cap[0]


def _group(
    model: TransformerBridge, tokens: Tensor, sets: Sequence[Sequence[Node]], by_layer: dict[int, Any]
) -> tuple[dict[int, list[Place]], dict[int, list[Place]]]:
    """Neurons and latents by layer; UserError for what cannot be changed."""
    neurons, latents = defaultdict(list), defaultdict(list)
    for row, nodes in enumerate(sets):
        for node in nodes:
            if not node.is_feature:
                raise UserError(
                    f"expected neurons or latents to change; got the {node.kind} node ({node.label}); pick nodes with is_feature"
                )
            if not (0 <= node.layer < model.cfg.n_layers and 0 <= node.position < len(tokens)):
                raise UserError(
                    f"expected features inside the prompt and the model; got {node.label} at position {node.position}; "
                    "is it another prompt's?"
                )
            if node.kind == "latent" and node.layer not in by_layer:
                raise UserError(
                    f"expected the dictionary of block {node.layer} for {node.label}; got none; pass it in dictionaries"
                )
            width = len(model.blocks[node.layer].mlp.W_out if node.kind == "neuron" else by_layer[node.layer].W_enc)
            if not 0 <= node.index < width:
                raise UserError(
                    f"expected a {node.kind} index below {width} in block {node.layer}; got {node.index}; is it another model's?"
                )
            (neurons if node.kind == "neuron" else latents)[node.layer].append(Place(row, node.position, node.index))
    return neurons, latents


def _columns(places: list[Place], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    rows, positions, indices = torch.tensor(places, device=device).unbind(1)
    return rows, positions, indices


def _neuron_hook(places: list[Place], scale: float) -> Callable[..., Tensor]:
    def edit(post: Tensor, hook: Any) -> Tensor:
        where = _columns(places, post.device)
        edited = post.clone()
        edited[where] *= scale
        return edited

    return edit


def _latent_hooks(
    places: list[Place], scale: float, dictionary: Any
) -> tuple[Callable[..., None], Callable[..., Tensor]]:
    values: list[Tensor] = []

    def read(x: Tensor, hook: Any) -> None:
        rows, positions, indices = _columns(places, x.device)
        codes = dictionary.encode(x[rows, positions].to(dictionary.W_enc.dtype))
        values.append((codes.values * (codes.indices == indices[:, None].to(codes.indices))).sum(1))

    def write(out: Tensor, hook: Any) -> Tensor:
        rows, positions, indices = _columns(places, out.device)
        change = (scale - 1) * values[-1][:, None] * dictionary.W_dec[indices.to(dictionary.W_dec.device)]
        return out.index_put((rows, positions), change.to(out), accumulate=True)

    return read, write
