"""Who writes to the residual stream of a decoder and who reads it: the edges that patching asks about.

Writers are the embedding (what enters block 0, learned positions included), every attention head and every MLP. The
stream before any reader is the sum of what the writers before it wrote, and constants. Readers are

    q, k, v    the query of a head, the key and the value of a key-value head (shared by the heads of its group)
    mlp        an MLP                                             logit     ln_final at the end

and an edge (writer, reader) is that one summand of what the reader reads (Elhage et al. 2021; Conmy et al. 2023):

    head h writes   post(z_h W_O^h)           with post the linear part of ln1_post at its denominators, where there is one
    q of head h     ln1(stream) W_Q^h + b_Q   k, v alike; the norm is the model's own, computed anew for each reader
    an MLP reads    ln2(stream)               in parallel blocks the stream before the block, through ln1 if ln2 is missing

Nothing rests on a list of architectures: `wire` runs the model once, finds which norm and stream each MLP reads, and refuses
(UserError) a model whose own q, k, v, MLP inputs and branch outputs these formulas do not reproduce. Biases of a branch (b_O,
that of a post-norm) are no writer's: they are equal in two runs and cancel. In a post-norm model with such a bias they
would not cancel exactly; none of the tested architectures has one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...saes.errors import UserError
from ..tracing.frozen import quiet, weights

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

CHANNELS = ("q", "k", "v")


class Component(NamedTuple):
    """A writer (kind embed, head, mlp) or a reader (q, k, v, mlp, logit). `index`: of the head or key-value head, else -1."""

    kind: str
    layer: int
    index: int = -1


class BlockWiring(NamedTuple):
    """One block: its attention weights and norms, and what its MLP reads. A norm that is absent is None."""

    layer: int
    weights: dict[
        str, Tensor
    ]  # W_Q [head d e], W_K, W_V [kv d e], W_O [head e d], and b_Q, b_K, b_V, b_O where present
    attn_norm: Any
    attn_post: Any
    has_mlp: bool
    mlp_norm: Any = None
    is_parallel: bool = False

    @property
    def heads(self) -> int:
        return len(self.weights["W_Q"])

    @property
    def kv(self) -> int:
        return len(self.weights["W_K"])


class Wiring(NamedTuple):
    """All writers and readers of a model in causal order; `allowed`: who comes before whom."""

    model: Any
    blocks: list[BlockWiring]
    senders: list[Component]
    receivers: list[Component]
    allowed: Bool[Tensor, "receiver sender"]
    scales: tuple[str, ...]

    def rows(self, layer: int, kind: str) -> slice:
        """Where the readers of one kind and layer stand among `receivers`."""
        places = [i for i, reader in enumerate(self.receivers) if (reader.kind, reader.layer) == (kind, layer)]
        return slice(places[0], places[-1] + 1)

    def columns(self, layer: int, kind: str) -> slice:
        """Where the writers of one kind and layer stand among `senders`."""
        places = [i for i, writer in enumerate(self.senders) if (writer.kind, writer.layer) == (kind, layer)]
        return slice(places[0], places[-1] + 1)


def wire(model: TransformerBridge, tokens: Int[Tensor, "token"]) -> Wiring:
    """Find the writers and readers of `model` and check them on one prompt; UserError when the formulas do not hold."""
    dtype = next(model.parameters()).dtype
    if dtype not in (torch.float32, torch.float64):
        raise UserError(f"expected a model in float32 or float64; got {dtype}; load it with dtype=torch.float32")
    present = model.hook_dict
    scales = tuple(name for name in present if name.endswith("hook_scale"))
    seen = _watch(model, tokens, scales, present)
    blocks = [_wire_block(model, layer, seen, scales) for layer in range(model.cfg.n_layers)]
    senders, receivers = [Component("embed", -1)], []
    for block in blocks:
        senders += [Component("head", block.layer, head) for head in range(block.heads)]
        for channel, count in zip(CHANNELS, (block.heads, block.kv, block.kv), strict=True):
            receivers += [Component(channel, block.layer, index) for index in range(count)]
        if block.has_mlp:
            senders.append(Component("mlp", block.layer))
            receivers.append(Component("mlp", block.layer))
    receivers.append(Component("logit", len(blocks)))
    allowed = torch.tensor([[_comes_before(w, r, blocks) for w in senders] for r in receivers])
    return Wiring(model, blocks, senders, receivers, allowed, scales)


def _comes_before(writer: Component, reader: Component, blocks: list[BlockWiring]) -> bool:
    within = reader.kind == "mlp" and writer.kind == "head" and not blocks[reader.layer].is_parallel
    return writer.layer < reader.layer or (within and writer.layer == reader.layer)


def fire(wiring: Wiring, tokens: Int[Tensor, "row token"], hooks: list[Any]) -> Float[Tensor, "row token vocab"]:
    """One forward pass with `hooks`, in the caller's gradient mode, norms in the model's own dtype."""
    with own_dtype(wiring.model, wiring.scales):
        return wiring.model.run_with_hooks(tokens, fwd_hooks=hooks)


@contextmanager
def own_dtype(model: TransformerBridge, scales: tuple[str, ...]) -> Iterator[None]:
    """Within, norms of a float64 model compute in float64: a copy returned from `hook_scale` does that (see frozen.py)."""
    is_double = next(model.parameters()).dtype == torch.float64
    copies: list[Any] = [(name, lambda scale, hook: scale.clone()) for name in scales] if is_double else []
    with quiet(), model.hooks(fwd_hooks=copies):
        yield


def head_outputs(
    block: BlockWiring, z: Float[Tensor, "row token head e"], scale: Float[Tensor, "row token 1"] | None
) -> Float[Tensor, "head row token d"]:
    """What each head adds to the stream; `scale` is the denominator of the post-norm, where there is one."""
    out = einsum(z, block.weights["W_O"], "row token head e, head e d -> head row token d")
    return out if scale is None else _post(block, out, scale)


def _post(block: BlockWiring, out: Tensor, scale: Tensor) -> Tensor:
    """The linear part of ln1_post with its denominator given."""
    norm = block.attn_post
    gain = norm.weight.detach() + 1 if norm.uses_weight_offset else norm.weight.detach()
    return gain * (out if norm.uses_rms_norm else out - out.mean(-1, keepdim=True)) / scale


def project(
    block: BlockWiring, channel: str, stream: Float[Tensor, "row receiver token d"]
) -> Float[Tensor, "row token receiver e"]:
    """Queries, keys or values when every head (key-value head) reads a stream of its own: ln1(stream) W + b."""
    W, b = block.weights[f"W_{channel.upper()}"], block.weights.get(f"b_{channel.upper()}")
    normed = through(block.attn_norm, stream)
    out = einsum(normed, W, "row receiver token d, receiver d e -> row token receiver e")
    return out if b is None else out + b


def through(norm: Any, stream: Float[Tensor, "*row token d"]) -> Float[Tensor, "*row token d"]:
    """The model's own norm, applied to streams with any number of leading axes; None changes nothing."""
    return stream if norm is None else norm(stream.reshape(-1, *stream.shape[-2:])).reshape(stream.shape)


def _watch(
    model: TransformerBridge, tokens: Int[Tensor, "token"], scales: tuple[str, ...], present: Any
) -> dict[str, Tensor]:
    """One unmodified pass: what the check compares, by hook name, with a batch axis of 1."""
    seen: dict[str, Tensor] = {}
    per_block = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post", "mlp.hook_in")
    attention = ("attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z", "ln1_post.hook_scale")
    names = [f"blocks.{layer}.{name}" for layer in range(model.cfg.n_layers) for name in (*per_block, *attention)]

    def keep(name: str) -> Any:
        return lambda value, hook: seen.__setitem__(name, value.detach())

    hooks: list[Any] = [(name, keep(name)) for name in names if name in present]
    with torch.no_grad(), own_dtype(model, scales):
        model.run_with_hooks(tokens[None], fwd_hooks=hooks)
    missing = [name for name in ("hook_resid_pre", "hook_attn_out", *attention[:4]) if f"blocks.0.{name}" not in seen]
    if missing:
        raise UserError(
            f"expected a decoder that fires blocks.0.{missing[0]}; got {model.cfg.model_name}, which does not; use another model"
        )
    return seen


def _wire_block(model: TransformerBridge, layer: int, seen: dict[str, Tensor], scales: tuple[str, ...]) -> BlockWiring:
    prefix = f"blocks.{layer}."
    mine = {name.removeprefix(prefix): value for name, value in seen.items() if name.startswith(prefix)}
    module, norms = model.blocks[layer], model.blocks[layer].submodules
    own = weights(module.attn, "W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O")
    has_mlp = "mlp.hook_in" in mine and "hook_mlp_out" in mine
    block = BlockWiring(layer, own, norms.get("ln1"), norms.get("ln1_post"), has_mlp)
    pre, mid = mine["hook_resid_pre"], mine["hook_resid_pre"] + mine["hook_attn_out"]
    after = mid + mine["hook_mlp_out"] if has_mlp else mid
    with torch.no_grad(), own_dtype(model, scales):
        _require(model, layer, "the stream", after, mine["hook_resid_post"])
        for channel in CHANNELS:
            stream = pre[:, None].expand(-1, len(own[f"W_{channel.upper()}"]), -1, -1)
            truth = mine[f"attn.hook_{channel}"]
            _require(model, layer, channel, project(block, channel, stream).reshape(truth.shape), truth)
        _require(model, layer, "the sum of the heads", _branch(block, mine), mine["hook_attn_out"])
        if not has_mlp:
            return block
        choices = [(norm, stream) for norm in (norms.get("ln2"), norms.get("ln1"), None) for stream in (mid, pre)]
        errors = [_relative(through(norm, stream), mine["mlp.hook_in"]) for norm, stream in choices]
        best = min(range(len(choices)), key=errors.__getitem__)
        _require(model, layer, "the MLP's input", through(*choices[best]), mine["mlp.hook_in"])
    return block._replace(mlp_norm=choices[best][0], is_parallel=choices[best][1] is pre)


def _branch(block: BlockWiring, mine: dict[str, Tensor]) -> Tensor:
    z, scale = mine["attn.hook_z"], mine.get("ln1_post.hook_scale")
    heads, e, _ = block.weights["W_O"].shape
    total = head_outputs(block, z.reshape(*z.shape[:2], heads, e), scale).sum(0)
    constant = block.weights.get("b_O", total.new_zeros(total.shape[-1]))
    if scale is None:
        return total + constant
    bias = None if block.attn_post.uses_rms_norm else block.attn_post.bias
    return total + _post(block, constant, scale) + (0 if bias is None else bias.detach())


def _relative(ours: Tensor, truth: Tensor) -> float:
    return float((ours - truth).norm() / truth.norm().clamp_min(1e-30))


def _require(model: TransformerBridge, layer: int, part: str, ours: Tensor, truth: Tensor) -> None:
    error = _relative(ours, truth)
    tolerance = 1e-9 if truth.dtype == torch.float64 else 1e-3
    if not (error <= tolerance or torch.equal(ours, truth)):
        raise UserError(
            f"expected a decoder whose heads and MLPs read and write one residual stream; {model.cfg.model_name} is not: "
            f"{part} of block {layer} is off by {error:.1e} (relative; at most {tolerance:.0e}); use another model"
        )
