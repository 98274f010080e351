"""Is this model the affine machine that `frozen.py` takes it for? Measured on the model itself, before its first trace.

Two questions, because one is not enough:

1. *Closure.* Rebuilt from the frozen maps, does every block reproduce what the forward pass wrote, and do the logits
   follow? This sees a missing multiplier, a wrong norm, an unknown attention or MLP.
2. *Single leaves.* With patterns, norm scales and MLP outputs held inside the real model, a push on one leaf (the token
   embedding or an MLP output half way up, at the last position but one) must move the logit by exactly
   cotangent . push. A sum that closes is blind to an attention pattern left free under q/k norms, because patterns do
   not change when all leaves are scaled together.

A model that fails is refused with a UserError; nothing is ever traced approximately.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...saes.errors import UserError
from .frozen import FrozenPass, _affine, capture, quiet

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

LONGEST = 12  # tokens of the prompt that the check looks at
_passed: weakref.WeakSet[Any] = weakref.WeakSet()


def check_model(model: TransformerBridge, tokens: Int[Tensor, "token"]) -> None:
    """Refuse (UserError) a model whose frozen pass is not the affine map assumed here; a model that passed is not checked again."""
    if model in _passed:
        return
    frozen = capture(model, tokens[:LONGEST])
    # float32 keeps 7 digits, of which a stream with massive activations (norms of 20,000) leaves about 4 to the small parts.
    tolerance = 1e-9 if frozen.embed.dtype == torch.float64 else 1e-3
    for part, error in {**closure_errors(frozen), **leaf_errors(model, frozen)}.items():
        if not error <= tolerance:
            raise UserError(
                f"expected a decoder that is affine once attention patterns and norm scales are held; {model.cfg.model_name} "
                f"is not: {part} is off by {error:.1e} (relative; at most {tolerance:.0e}); trace another model"
            )
    _passed.add(model)


def _relative(ours: Tensor, truth: Tensor) -> float:
    return float((ours - truth).norm() / truth.norm().clamp_min(1e-30))


def closure_errors(frozen: FrozenPass) -> dict[str, float]:
    """Relative error of each frozen map against the tensor that the forward pass wrote, worst over layers."""
    worst: dict[str, float] = {}

    def note(part: str, ours: Tensor, truth: Tensor) -> None:
        worst[part] = max(worst.get(part, 0.0), _relative(ours, truth))

    stream = frozen.embed if frozen.pos_embed is None else frozen.embed + frozen.pos_embed
    for block in frozen.blocks:
        seen = block.seen
        note("the stream into a block", stream, seen["resid_pre"])
        note("the attention branch", block.attention(seen["resid_pre"]) + block.attention_constant(), seen["attn_out"])
        after = seen["resid_pre"] + seen["attn_out"]
        if block.mlp is not None:
            note(
                "the MLP's input",
                _affine(block.mlp_norm, seen["resid_pre"] if block.is_parallel else after),
                seen["mlp_in"],
            )
            after = after + _affine(block.mlp_post, seen["mlp_out"])
        note("the stream out of a block", after, seen["resid_post"])
        stream = seen["resid_post"]
    logits = _affine(frozen.final, stream)[-1] @ frozen.W_U
    note("the logits", logits if frozen.b_U is None else logits + frozen.b_U, frozen.logits)
    return worst


def leaf_errors(model: TransformerBridge, frozen: FrozenPass) -> dict[str, float]:
    """Relative error of the adjoint's prediction of what a push on one leaf does to the top logit of the frozen model."""
    top = int(frozen.logits.argmax())
    layer = len(frozen.blocks) // 2
    position = len(frozen.tokens) - 2  # near the end: a sliding window may hide earlier ones
    pushes = {"the effect of a token embedding": "hook_embed"}
    if frozen.blocks[layer].mlp is not None:
        pushes["the effect of an MLP output"] = f"blocks.{layer}.mlp.hook_out"
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(pushes), frozen.embed.shape[1], generator=generator, dtype=torch.float64).to(frozen.embed)
    size = [frozen.embed[position].norm(), frozen.blocks[layer].seen.get("mlp_out", frozen.embed)[position].norm()]
    # As long as the leaf; one of length 0 is pushed by 1, since against no push rounding would count as error.
    noise = torch.stack([row * (float(length) or 1.0) / row.norm() for row, length in zip(noise, size, strict=False)])
    sites = {site: row for row, site in enumerate(pushes.values(), start=1)}
    measured = _frozen_logit(model, frozen, sites, noise, position, top)
    errors = {}
    for row, (part, site) in enumerate(pushes.items()):
        g = _cotangent(frozen, site, top)
        difference = (measured[row + 1] - measured[0] - g[position] @ noise[row]).abs()
        # Beside the largest cotangent of any position: the logit need not read this one at all.
        errors[part] = float(difference / (g.norm(dim=1).max() * noise[row].norm()).clamp_min(1e-30))
    return errors


def _cotangent(frozen: FrozenPass, site: str, token: int) -> Float[Tensor, "token d"]:
    """Cotangent of one logit at `hook_embed` or at a block's `mlp.hook_out`, everything else held."""
    g = torch.zeros_like(frozen.embed)
    g[-1] = frozen.W_U[:, token]
    g = frozen.final.adjoint(g)
    for layer in reversed(range(len(frozen.blocks))):
        block = frozen.blocks[layer]
        if site == f"blocks.{layer}.mlp.hook_out":
            return block.mlp_post.adjoint(g) if block.mlp_post else g
        g = g + block.attention_adjoint(g[None])[0]
    return g


def _frozen_logit(
    model: TransformerBridge,
    frozen: FrozenPass,
    sites: dict[str, int],
    noise: Float[Tensor, "push d"],
    position: int,
    token: int,
) -> Float[Tensor, "row"]:
    """The last position's logit in the real model with everything held: unpushed, then with each push alone."""
    values: dict[int, Tensor] = {}

    def push(tensor: Tensor, site: str) -> Tensor:
        if site in sites:
            tensor = tensor.clone()
            tensor[sites[site], position] += noise[sites[site] - 1]
        return tensor

    def hold_scale(tensor: Tensor, norm: Any) -> Tensor:
        return norm.scale.to(tensor).repeat(len(sites) + 1, 1).reshape(tensor.shape)

    def hold_mlp(tensor: Tensor, layer: int) -> Tensor:
        return push(frozen.blocks[layer].seen["mlp_out"].expand(tensor.shape), f"blocks.{layer}.mlp.hook_out")

    def read_v(tensor: Tensor, layer: int) -> None:
        values[layer] = tensor

    def hold_pattern(tensor: Tensor, layer: int) -> Tensor:
        block = frozen.blocks[layer]
        spread = values[layer].unflatten(-1, (-1, block.W_V.shape[-1])) if values[layer].ndim == 3 else values[layer]
        spread = spread.repeat_interleave(len(block.pattern) // spread.shape[2], dim=2)
        return torch.einsum("hqk,bkhe->bqhe", block.pattern, spread).reshape(tensor.shape)

    def bind(function: Any, extra: Any) -> Any:
        return lambda tensor, hook: function(tensor, extra)

    hooks: list[Any] = [
        ("hook_embed", bind(push, "hook_embed")),
        ("ln_final.hook_scale", bind(hold_scale, frozen.final)),
    ]
    for layer, block in enumerate(frozen.blocks):
        norms = {"ln1": block.attn_norm, "ln1_post": block.attn_post, "ln2": block.mlp_norm, "ln2_post": block.mlp_post}
        present = model.blocks[layer].submodules
        hooks += [
            (f"blocks.{layer}.{name}.hook_scale", bind(hold_scale, norm))
            for name, norm in norms.items()
            if norm and name in present
        ]
        hooks += [
            (f"blocks.{layer}.attn.hook_v", bind(read_v, layer)),
            (f"blocks.{layer}.attn.hook_z", bind(hold_pattern, layer)),
        ]
        if block.mlp is not None:
            hooks.append((f"blocks.{layer}.mlp.hook_out", bind(hold_mlp, layer)))
    kept: list[Tensor] = []
    hooks.append(("hook_unembed", lambda tensor, hook: kept.append(tensor[:, -1, token])))
    with torch.no_grad(), quiet():
        model.run_with_hooks(frozen.tokens.repeat(len(sites) + 1, 1), fwd_hooks=hooks)
    return kept[0]
