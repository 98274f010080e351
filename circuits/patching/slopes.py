"""Gradients for attribution patching: at every reader's stream, and inside heads.

`slopes` runs the model once with gradients on, everything free to respond. Gradients are caught where the model reads: at q, k, v, the
MLP's input and the last stream. A reader's own stream never exists in the model, so that they are brought back to it by hand,
through W_Q, W_K, W_V and the transposed Jacobian of the norm at the stream that all readers share.

`inside` splits Delta q . dm/dq, and the same of k and v, over the heads of a group and, with positions, over query positions.
In a batch with a row for each of them, q, k and v are leaves and only one output counts, weighted by its slope dm/dz.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from .components import CHANNELS, Wiring, fire, own_dtype, through


class Slopes(NamedTuple):
    """Gradients of the metric: at the stream that each reader sees, and at each layer's head outputs z [token head e]."""

    receivers: Float[Tensor, "receiver token d"]
    z: list[Tensor]


def slopes(
    wiring: Wiring, tokens: Int[Tensor, "token"], embed: Float[Tensor, "token d"], direction: Float[Tensor, "vocab"]
) -> Slopes:
    """The gradients of (last logits before any soft-cap) . direction when block 0 reads `embed`."""
    live: dict[str, Tensor] = {}
    streams: dict[str, Tensor] = {}
    first, last = "blocks.0.hook_resid_pre", f"blocks.{len(wiring.blocks) - 1}.hook_resid_post"

    def catch(name: str) -> Any:
        def act(value: Tensor, hook: Any) -> Tensor:
            live[name] = value.clone()
            return live[name]

        return act

    def note(name: str) -> Any:
        return lambda value, hook: streams.__setitem__(name, value.detach())

    leaf = embed.detach().clone()[None].requires_grad_()
    watched = [f"blocks.{block.layer}.attn.hook_{name}" for block in wiring.blocks for name in (*CHANNELS, "z")]
    watched += [f"blocks.{block.layer}.mlp.hook_in" for block in wiring.blocks if block.has_mlp]
    watched += [last, "hook_unembed"]
    noted = [f"blocks.{b.layer}.{name}" for b in wiring.blocks for name in ("hook_resid_pre", "hook_attn_out")]
    hooks = [(first, lambda value, hook: leaf), *((name, note(name)) for name in noted)]
    hooks += [(name, catch(name)) for name in watched]
    with torch.enable_grad():
        fire(wiring, tokens[None], hooks)
        value = live.pop("hook_unembed")[0, -1] @ direction
        found = torch.autograd.grad(value, list(live.values()))
    gradients = dict(zip(live, found, strict=True))
    pieces = []
    for block in wiring.blocks:
        prefix = f"blocks.{block.layer}."
        pre = streams[prefix + "hook_resid_pre"]
        heads = [_through_weights(block.weights, name, gradients[f"{prefix}attn.hook_{name}"]) for name in CHANNELS]
        pieces.append(_pull_back(wiring, block.attn_norm, pre, torch.cat(heads)))
        if block.has_mlp:
            stream = pre if block.is_parallel else pre + streams[prefix + "hook_attn_out"]
            pieces.append(_pull_back(wiring, block.mlp_norm, stream, gradients[prefix + "mlp.hook_in"]))
    z = []
    for block in wiring.blocks:
        slope = gradients[f"blocks.{block.layer}.attn.hook_z"][0]
        z.append(slope.reshape(len(slope), block.heads, -1))
    return Slopes(torch.cat([*pieces, gradients[last]]), z)


def _through_weights(weights: dict[str, Tensor], channel: str, gradient: Tensor) -> Float[Tensor, "head token d"]:
    W = weights[f"W_{channel.upper()}"]
    gradient = gradient[0].reshape(gradient.shape[1], len(W), -1)
    return einsum(gradient, W, "token head e, head d e -> head token d")


def _pull_back(
    wiring: Wiring, norm: Any, stream: Float[Tensor, "1 token d"], gradient: Float[Tensor, "receiver token d"]
) -> Float[Tensor, "receiver token d"]:
    """Gradients at a norm's output -> at its input: the transpose of its full Jacobian at `stream`."""
    if norm is None:
        return gradient
    with torch.enable_grad(), own_dtype(wiring.model, wiring.scales):
        x = stream.expand(len(gradient), -1, -1).detach().clone().requires_grad_()
        return torch.autograd.grad(through(norm, x), x, gradient)[0]


def inside(
    wiring: Wiring,
    tokens: Int[Tensor, "token"],
    embed: Float[Tensor, "token d"],
    z_slopes: list[Tensor],
    changes: list[dict[str, Tensor]],
    positions: bool,
) -> list[dict[str, Tensor]]:
    """Delta q . dm/dq, and the same of k and v, by head and, with positions, by where it is read and where it arrives."""
    group = max(block.heads // block.kv for block in wiring.blocks)
    queries = len(tokens) if positions else 1
    rows = group * queries
    leaves: dict[str, Tensor] = {}
    outputs: list[Tensor] = []

    def cut(name: str) -> Any:
        def act(value: Tensor, hook: Any) -> Tensor:
            leaves[name] = value.detach().clone().requires_grad_()
            return leaves[name]

        return act

    hooks: list[Any] = [("blocks.0.hook_resid_pre", lambda value, hook: embed.expand_as(value))]
    for block in wiring.blocks:
        prefix = f"blocks.{block.layer}.attn.hook_"
        hooks += [(prefix + name, cut(prefix + name)) for name in CHANNELS]
        hooks.append((prefix + "z", lambda value, hook: outputs.append(value)))
    with torch.enable_grad():
        fire(wiring, tokens.expand(rows, -1), hooks)
        chosen = (
            (z.reshape(rows, *slope.shape) * _one_each(slope, block.heads // block.kv, group, queries)).sum()
            for z, slope, block in zip(outputs, z_slopes, wiring.blocks, strict=True)
        )
        found = torch.autograd.grad(sum(chosen), list(leaves.values()))  # type: ignore[arg-type]  # sum of tensors
    gradients = dict(zip(leaves, found, strict=True))
    result = []
    for block, change in zip(wiring.blocks, changes, strict=True):
        here = {name: gradients[f"blocks.{block.layer}.attn.hook_{name}"] for name in CHANNELS}
        result.append({name: _by_head(here[name], change[name], block.heads, group, queries) for name in CHANNELS})
    return result


def _one_each(
    slope: Float[Tensor, "token head e"], own: int, group: int, queries: int
) -> Float[Tensor, "row token head e"]:
    """Row (g, p): the slopes of the g-th head of every group, at position p alone if there is a row for each."""
    tokens, heads, _ = slope.shape
    member = torch.arange(heads) % own == torch.arange(group)[:, None]
    place = torch.ones(1, tokens, dtype=torch.bool) if queries == 1 else torch.eye(tokens, dtype=torch.bool)
    mask = member[:, None, None, :] & place[None, :, :, None]
    return slope * mask.flatten(0, 1)[..., None].to(slope)


def _by_head(
    gradient: Tensor, change: Float[Tensor, "token part e"], heads: int, group: int, queries: int
) -> Float[Tensor, "head key query"]:
    """Contract with the change of q, k or v, and tell from the row for which head it counts."""
    score = (gradient.reshape(-1, *change.shape) * change).sum(-1)
    score = rearrange(score, "(g query) key part -> g part key query", query=queries)
    parts = score.shape[1]
    # A query has one head, and the other rows hold zero for it; a key or value serves each head of its group in a row.
    score = score.sum(0) if parts == heads else score[: heads // parts].transpose(0, 1).flatten(0, 1)
    return score if queries > 1 else score.sum(1, keepdim=True)
