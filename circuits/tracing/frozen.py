"""One unmodified forward pass of a model on one prompt, frozen into affine maps.

Hold every attention pattern P and every norm denominator s at its value on the prompt, and take each MLP's output as
given. What is left of a decoder is affine in the residual stream r [token d] (Elhage et al. 2021; Ameisen et al. 2025):

    norm       N r   = gain * centre(r) / s + bias               (no centring in RMSNorm; Gemma's gain is 1 + w)
    attention  A r   = post(sum_h P_h (N r W_V^h + b_V^h) W_O^h + b_O)
    block      r_mid = r + A r;   r' = r_mid + post(mlp_out)     (parallel blocks: both branches read r)
    logits     N_final r W_U + b_U                               (before any soft-cap)

An affine map is a linear map plus a constant. The transpose of the linear part moves a cotangent g (the gradient of some
target) backwards without autograd; the constants, met by the cotangents on their way, make the bias leaf. `Norm` and `Block` have both,
each restricted to the first `t` tokens when it is given cotangents of that length: later positions cannot act on earlier ones.

Everything is found by hook names and weight accessors of TransformerLens' bridge, not by a list of architectures; which
residual stream the MLP reads is seen from the captured tensors. `check.py` decides whether a model is really of this form.

Trap: RMSNorm of transformers computes in float32 even inside a float64 model. Returning a copy from `hook_scale` makes
the bridge rebuild the norm in the model's own dtype; float64 passes do that, so that identities hold to 1e-15.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from einops import einsum, repeat
from jaxtyping import Float, Int
from torch import Tensor

from ...saes.errors import UserError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class Norm(NamedTuple):
    """A norm with its denominators held: z -> gain * centre(z) / scale + bias."""

    gain: Float[Tensor, "d"]
    bias: Float[Tensor, "d"] | None
    scale: Float[Tensor, "token 1"]
    is_centred: bool

    def linear(self, z: Float[Tensor, "*batch token d"]) -> Float[Tensor, "*batch token d"]:
        """The linear part, forwards."""
        return self.gain * self._centre(z) / self.scale[: z.shape[-2]]

    def adjoint(self, g: Float[Tensor, "*batch token d"]) -> Float[Tensor, "*batch token d"]:
        """The transpose of the linear part: cotangent of the output -> cotangent of the input."""
        return self._centre(self.gain * g / self.scale[: g.shape[-2]])

    def adjoint_at(self, g: Float[Tensor, "row d"], positions: Int[Tensor, "row"]) -> Float[Tensor, "row d"]:
        """`adjoint` for rows that each sit at a position of their own."""
        return self._centre(self.gain * g / self.scale[positions])

    def _centre(self, z: Tensor) -> Tensor:
        return z - z.mean(-1, keepdim=True) if self.is_centred else z


class Block(NamedTuple):
    """One decoder block, frozen. A norm that the block lacks is None; so is everything of an MLP that it lacks."""

    pattern: Float[Tensor, "head query key"]
    W_V: Float[Tensor, "kv d e"]
    b_V: Float[Tensor, "kv e"] | None
    W_O: Float[Tensor, "head e d"]
    b_O: Float[Tensor, "d"] | None
    attn_norm: Norm | None
    attn_post: Norm | None
    mlp_norm: Norm | None
    mlp_post: Norm | None
    is_parallel: bool
    mlp: Any  # the bridge's MLP module: weights of the neurons
    seen: dict[str, Float[Tensor, "token width"]]  # captured: resid_pre, attn_out, mlp_in, mlp_out, pre, post, ...

    def attention(self, r: Float[Tensor, "token d"]) -> Float[Tensor, "token d"]:
        """The linear part of the attention branch, forwards, from the block's input to what it adds to the stream."""
        normed = self.attn_norm.linear(r) if self.attn_norm else r
        values = einsum(normed, self.W_V, "token d, kv d e -> kv token e")
        out = self._mix(values)
        return self.attn_post.linear(out) if self.attn_post else out

    def attention_adjoint(self, g: Float[Tensor, "row token d"]) -> Float[Tensor, "row token d"]:
        """The transpose of `attention`: cotangent of the branch's output -> cotangent of the block's input."""
        g = self.attn_post.adjoint(g) if self.attn_post else g
        s = self.mix_adjoint(self.z_adjoint(g))
        return self.attn_norm.adjoint(s) if self.attn_norm else s

    def add_attention_adjoint_(self, g: Float[Tensor, "row token d"]) -> None:
        """g += attention_adjoint(g), in place and with one pass over `g` each way."""
        (rows, t, d), (heads, e, _), kv = g.shape, self.W_O.shape, len(self.W_V)
        out, pattern, back = self._folded(t)
        flat = g.view(rows * t, d)
        u = (flat @ out).view(rows, t, kv, heads // kv, e).permute(2, 3, 1, 0, 4).reshape(kv, -1, rows * e)
        mix = pattern.permute(0, 3, 1, 2).flatten(2)  # query heads of a group are summed
        v = (mix @ u).view(kv, t, rows, e).permute(2, 1, 0, 3).reshape(rows * t, kv * e)
        flat.addmm_(v, back)

    def add_attention_adjoint_at_(self, g: Float[Tensor, "row token d"], positions: Int[Tensor, "row"]) -> None:
        """The same for rows that are zero but at one position each, as all are before their first attention."""
        (rows, t, d), (heads, e, _), kv = g.shape, self.W_O.shape, len(self.W_V)
        out, pattern, back = self._folded(t)
        u = (g[torch.arange(rows, device=g.device), positions] @ out).view(rows, kv, heads // kv, e)
        v = einsum(pattern[:, :, positions], u, "kv group row key, row kv group e -> row key kv e")
        g.view(rows * t, d).addmm_(v.reshape(rows * t, kv * e), back)

    def _folded(
        self, t: int
    ) -> tuple[Float[Tensor, "d width"], Float[Tensor, "kv group query key"], Float[Tensor, "kv_width d"]]:
        """W_O, patterns and W_V of the first t tokens with the norms folded in: gains and centring into the weights,
        denominators into the patterns. Made when needed, since it is small beside the rows that it is for."""
        out, back = self.W_O.flatten(0, 1).T, self.W_V.transpose(1, 2).flatten(0, 1)
        pattern = self.pattern[:, :t, :t]
        if self.attn_post:
            out = self.attn_post.gain[:, None] * (out - out.mean(0) if self.attn_post.is_centred else out)
            pattern = pattern / self.attn_post.scale[:t]
        if self.attn_norm:
            back = back * self.attn_norm.gain
            back = back - back.mean(1, keepdim=True) if self.attn_norm.is_centred else back
            pattern = pattern / self.attn_norm.scale[:t, 0]
        return out, pattern.unflatten(0, (len(self.W_V), -1)), back

    def z_adjoint(self, g: Float[Tensor, "row token d"]) -> Float[Tensor, "row token width"]:
        """Cotangent of the attention's output (before a post-norm) -> of the heads' outputs side by side (attn.hook_z)."""
        return g @ self.W_O.flatten(0, 1).T

    def mix_adjoint(self, u: Float[Tensor, "row token width"]) -> Float[Tensor, "row token d"]:
        """Cotangent of the heads' outputs -> of what the attention reads (attn.hook_in), patterns held."""
        heads, kv, t = len(self.W_O), len(self.W_V), u.shape[-2]
        per_head = u.unflatten(-1, (heads, -1))
        v = einsum(self.pattern[:, :t, :t], per_head, "head query key, row query head e -> row key head e")
        grouped = v.unflatten(2, (kv, heads // kv)).sum(3)  # query heads of one key-value group stand together
        return grouped.flatten(2) @ self.W_V.transpose(1, 2).flatten(0, 1)

    def attention_constant(self) -> Float[Tensor, "token d"]:
        """What the attention branch adds whatever it reads: the norm's bias through P, P b_V W_O, b_O, the post-norm's bias."""
        out = self.z_constant() @ self.W_O.flatten(0, 1)
        return _affine(self.attn_post, out if self.b_O is None else out + self.b_O)

    def z_constant(self) -> Float[Tensor, "token width"]:
        """The constant part of the heads' outputs, side by side: the norm's bias and b_V, weighted by P."""
        values = self.W_O.new_zeros(len(self.W_V), self.W_V.shape[2])
        if self.attn_norm and self.attn_norm.bias is not None:
            values = values + einsum(self.attn_norm.bias, self.W_V, "d, kv d e -> kv e")
        values = values if self.b_V is None else values + self.b_V
        spread = values.repeat_interleave(len(self.W_O) // len(self.W_V), 0)
        return (self.pattern.sum(2)[:, :, None] * spread[:, None]).transpose(0, 1).flatten(1)

    def _mix(self, values: Float[Tensor, "kv token e"]) -> Float[Tensor, "token d"]:
        spread = repeat(values, "kv key e -> (kv group) key e", group=self.W_O.shape[0] // self.W_V.shape[0])
        return einsum(self.pattern, spread, self.W_O, "head query key, head key e, head e d -> query d")


class FrozenPass(NamedTuple):
    """All that a prompt's forward pass left behind. `logits` are the last position's, before any soft-cap."""

    tokens: Int[Tensor, "token"]
    embed: Float[Tensor, "token d"]
    pos_embed: Float[Tensor, "token d"] | None
    blocks: list[Block]
    final: Norm
    W_U: Float[Tensor, "d vocab"]
    b_U: Float[Tensor, "vocab"] | None
    logits: Float[Tensor, "vocab"]
    probabilities: Float[Tensor, "vocab"]
    at: dict[str, Float[Tensor, "token width"]]  # further sites that were asked for


def _affine(norm: Norm | None, z: Tensor) -> Tensor:
    if norm is None:
        return z
    return norm.linear(z) if norm.bias is None else norm.linear(z) + norm.bias


# Hooks of a block whose tensors are kept, and what they are called in `Block.seen`.
KEPT = {
    "hook_resid_pre": "resid_pre",
    "hook_attn_out": "attn_out",
    "hook_resid_post": "resid_post",
    "mlp.hook_in": "mlp_in",
    "mlp.hook_pre": "pre",
    "mlp.hook_pre_linear": "pre_linear",
    "mlp.hook_post": "post",
    "mlp.hook_out": "mlp_out",
}
SCALES = tuple(f"{norm}.hook_scale" for norm in ("ln1", "ln2", "ln1_post", "ln2_post"))
PER_BLOCK = (*KEPT, *SCALES, "attn.hook_in", "attn.hook_pattern", "ln2.hook_in")
NEEDED = ("hook_resid_pre", "hook_attn_out", "hook_resid_post", "attn.hook_in", "attn.hook_pattern")
GLOBAL = ("hook_embed", "hook_pos_embed", "ln_final.hook_scale", "hook_unembed")


def capture(model: TransformerBridge, tokens: Int[Tensor, "token"], sites: Collection[str] = ()) -> FrozenPass:
    """Run `model` once on `tokens`, unmodified, and keep what the frozen maps need, and the activations at `sites`.

    Raises UserError when an activation is not finite or the model lacks the hooks of a decoder.
    """
    seen, logits = run(model, tokens, sites)
    needed = [f"blocks.{layer}.{name}" for layer in range(model.cfg.n_layers) for name in NEEDED]
    missing = [
        name for name in (*needed, *sites, "hook_embed", "ln_final.hook_scale", "hook_unembed") if name not in seen
    ]
    if missing:
        raise UserError(
            f"expected a decoder that fires {missing[0]}; got {model.cfg.model_name}, which does not; trace another model"
        )
    broken = next((name for name, value in seen.items() if not is_finite(value)), None)
    if broken is not None:
        raise UserError(
            f"expected finite activations; got NaN or infinity at {broken}; check the model's weights and dtype"
        )
    unembed = weights(model.unembed, "W_U", "b_U")
    return FrozenPass(
        tokens,
        seen["hook_embed"],
        seen.get("hook_pos_embed"),
        blocks=[_block(block, layer, seen) for layer, block in enumerate(model.blocks)],
        final=_norm(model.ln_final, seen["ln_final.hook_scale"]),
        W_U=unembed["W_U"],
        b_U=unembed.get("b_U"),
        logits=seen["hook_unembed"][-1],
        probabilities=logits.double().softmax(-1),
        at={site: seen[site].reshape(len(tokens), -1) for site in sites},
    )


def run(
    model: TransformerBridge, tokens: Int[Tensor, "token"], sites: Collection[str] = ()
) -> tuple[dict[str, Tensor], Float[Tensor, "vocab"]]:
    """One forward pass: the tensors of the hooks named above without their batch axis, and the last position's logits."""
    seen: dict[str, Tensor] = {}
    per_block = [f"blocks.{layer}.{name}" for layer in range(model.cfg.n_layers) for name in PER_BLOCK]
    scales = [name for name in per_block + list(GLOBAL) if name.endswith("hook_scale")]
    is_double = next(model.parameters()).dtype == torch.float64

    def keep(value: Tensor, hook: Any, name: str) -> Tensor | None:
        # OPT flattens batch and token before its second norm; with one prompt the token axis is what is left.
        seen[name] = value.detach()[0] if value.ndim > 2 else value.detach()
        return value.clone() if is_double and name in scales else None

    def hook_for(name: str) -> Any:
        return lambda value, hook: keep(value, hook, name)

    present = model.hook_dict  # built anew at every access
    wanted = dict.fromkeys((*per_block, *GLOBAL, *sites))
    hooks: list[Any] = [(name, hook_for(name)) for name in wanted if name in present]
    with torch.no_grad(), quiet():
        logits = model.run_with_hooks(tokens[None], fwd_hooks=hooks)
    return seen, logits[0, -1]


def weights(module: Any, *names: str) -> dict[str, Tensor]:
    """Those of the named weights that a module has, without gradient."""
    found = {name: getattr(module, name, None) for name in names}
    return {name: weight.detach() for name, weight in found.items() if weight is not None}


def quiet() -> warnings.catch_warnings:
    """Silence the bridge's notice that a norm's scale was edited: that is the purpose."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)


def is_finite(value: Tensor) -> bool:
    """No NaN or infinity; one sum where there is none, since that reads the tensor once and makes no mask."""
    return bool(torch.isfinite(value.sum())) or bool(torch.isfinite(value).all())


def _norm(module: Any, scale: Tensor) -> Norm:
    own = weights(module, "weight", "bias")
    gain = own["weight"] + 1 if module.uses_weight_offset else own["weight"]
    return Norm(gain, own.get("bias"), scale.reshape(-1, 1).to(gain.dtype), not module.uses_rms_norm)


def _block(block: Any, layer: int, seen: dict[str, Tensor]) -> Block:
    prefix = f"blocks.{layer}."
    mine = {name.removeprefix(prefix): value for name, value in seen.items() if name.startswith(prefix)}
    present = [name for name in ("ln1", "ln2", "ln1_post", "ln2_post") if name in block.submodules]
    norms = {name: _norm(block.submodules[name], mine[f"{name}.hook_scale"]) for name in present}
    mlp_norm = norms.get("ln2")
    is_parallel = "ln2.hook_in" in mine and torch.equal(mine["ln2.hook_in"], mine["hook_resid_pre"])
    if mlp_norm is None and "mlp.hook_in" in mine and torch.equal(mine["mlp.hook_in"], mine["attn.hook_in"]):
        mlp_norm, is_parallel = norms.get("ln1"), True
    attn = weights(block.attn, "W_V", "b_V", "W_O", "b_O")
    return Block(
        mine["attn.hook_pattern"].to(attn["W_V"].dtype),
        attn["W_V"],
        attn.get("b_V"),
        attn["W_O"],
        attn.get("b_O"),
        attn_norm=norms.get("ln1"),
        attn_post=norms.get("ln1_post"),
        mlp_norm=mlp_norm,
        mlp_post=norms.get("ln2_post"),
        is_parallel=is_parallel,
        mlp=block.submodules.get("mlp"),
        seen={name: mine[hook] for hook, name in KEPT.items() if hook in mine},
    )
