"""One head's score before its cap and softmax, as a bilinear form of two positions of what the attention reads.

    score[q, k] = scale . (A_q (x_q W_Q + b_Q)) . (A_k (x_k W_K + b_K)) + slope . k        A_p = R_p diag(gain) / s_p

x is what the attention reads (attn.hook_in), R_p the rotation of position p (1 without rotary embeddings), and gain / s_p
the q- or k-norm with its denominator held, as all norms are in a frozen pass (1 without such norms). With A held, the score is
bilinear in the streams at q and k, but for ALiBi's term, which depends on nothing but the key's position.

Which rotation, scale and cap a model uses is not looked up: what its attention module says of itself, and the conventions in
use, are tried in order of plausibility until one gives back the whole attention pattern of the head, and, where the bridge shows
them, the scores too (an ALiBi slope is read off one query and two keys, and must hold for all). If none does, the model is
refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from ...saes.errors import UserError
from ..tracing.frozen import FrozenPass, run, weights

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

TOLERANCE = {
    torch.float64: 1e-5,
    torch.float32: 1e-3,
}  # models take their softmax, rotary tables and q/k-norms in float32
ABSENT = 1e-20  # a pattern entry of 0 whose probability would be more than this is masked


class Side(NamedTuple):
    """How a head's queries (or keys) come from what the attention reads: final[p] = map[p] (x[p] W + b)."""

    W: Float[Tensor, "d e"]
    b: Float[Tensor, "e"]
    raw: Float[Tensor, "token e"]  # x W + b of the forward pass
    map: Float[Tensor, "token out e"]

    @property
    def final(self) -> Float[Tensor, "token out"]:
        """What the score multiplies, of the forward pass."""
        return einsum(self.map, self.raw, "token out e, token e -> token out")


class Bilinear(NamedTuple):
    """A head's score as a bilinear form; `cap`: the score enters the softmax as cap tanh(score / cap)."""

    query: Side
    key: Side
    scale: float
    slope: float
    cap: float | None
    allowed: Bool[Tensor, "query key"]

    def scores(self) -> Float[Tensor, "query key"]:
        """All scores before the cap, also of masked pairs."""
        return self.scale * self.query.final @ self.key.final.T + self.slope * torch.arange(len(self.allowed)).to(
            self.query.W
        )


def bilinear(model: TransformerBridge, frozen: FrozenPass, layer: int, head: int) -> Bilinear:
    """Find the form of one head; UserError when the model's attention is not of it."""
    name = f"blocks.{layer}.attn."
    hooks = (
        "hook_in",
        "hook_q",
        "hook_k",
        "q_norm.hook_scale",
        "k_norm.hook_scale",
        "hook_cos",
        "hook_sin",
        "hook_attn_scores",
    )
    seen = {
        site.removeprefix(name): value
        for site, value in run(model, frozen.tokens, [name + h for h in hooks])[0].items()
    }
    attn, pattern = model.blocks[layer].attn, frozen.blocks[layer].pattern
    own = weights(attn, "W_Q", "b_Q", "W_K", "b_K")
    if not {"W_Q", "W_K"} <= own.keys() or not {"hook_q", "hook_k"} <= seen.keys():
        raise _refusal(model, layer, head, "its attention shows no queries and keys")
    group = len(own["W_Q"]) // len(own["W_K"])
    query = _side(model, attn, seen, own, "q", layer, head)
    key = _side(model, attn, seen, own, "k", layer, head // group)
    shown = seen.get("hook_attn_scores", seen["hook_pattern"])[head]
    shown = None if torch.equal(shown.to(pattern), pattern[head]) else shown
    for rotation in _rotations(seen, pattern.shape[1], query.W.shape[1]):
        sides = [side._replace(map=_turned(rotation, side.map)) for side in (query, key)]
        for scale, cap in _constants(attn, layer, query.W.shape[1]):
            plain = Bilinear(sides[0], sides[1], scale, 0.0, cap, pattern[head] > 0)
            for form in _with_slope(plain, shown):
                if _agrees(form, pattern[head], shown):
                    return form._replace(allowed=_allowed(form, pattern[head]))
    raise _refusal(model, layer, head, "the pattern is not the softmax of any such product")


def _refusal(model: TransformerBridge, layer: int, head: int, why: str) -> UserError:
    return UserError(
        f"expected an attention score that is a product of a query and a key, rotated or not; got {model.cfg.model_name} "
        f"({type(model.blocks[layer].attn).__name__}), layer {layer} head {head}, where {why}; explain another model's scores"
    )


def _side(
    model: TransformerBridge,
    attn: Any,
    seen: dict[str, Tensor],
    own: dict[str, Tensor],
    which: str,
    layer: int,
    head: int,
) -> Side:
    """Projection and q- or k-norm, checked against the forward pass; the rotation is still to come."""
    W = own[f"W_{which.upper()}"]
    b = own.get(f"b_{which.upper()}", W.new_zeros(len(W), W.shape[2]))
    raw = seen[f"hook_{which}"].reshape(-1, len(W), W.shape[2]).to(W)
    ours = seen["hook_in"].to(W) @ W[head] + b[head]
    if not (ours - raw[:, head]).norm() <= TOLERANCE[W.dtype] * raw[:, head].norm():
        raise _refusal(model, layer, head, f"{which} is not a projection of what the attention reads")
    norm = attn.submodules.get(f"{which}_norm")
    return Side(W[head], b[head], raw[:, head], _norm_map(norm, seen.get(f"{which}_norm.hook_scale"), raw, head))


def _norm_map(
    norm: Any, scale: Tensor | None, raw: Float[Tensor, "token head e"], head: int
) -> Float[Tensor, "token e e"]:
    """A norm of queries or keys with its denominator held, as a matrix for each position."""
    tokens, heads, e = raw.shape
    one = torch.eye(e).to(raw)
    if norm is None or scale is None:
        return one.expand(tokens, e, e)
    gain = weights(norm, "weight").get("weight", raw.new_zeros(()) if norm.uses_weight_offset else raw.new_ones(()))
    gain = (gain + 1 if norm.uses_weight_offset else gain).to(raw)
    gain = gain.reshape(heads, e)[head] if gain.numel() == heads * e else gain.expand(e)
    centre = one if norm.uses_rms_norm else one - 1 / e
    held = _per_token(scale.to(raw), (raw[:, head] @ centre).pow(2).mean(1).sqrt(), heads, head)
    return gain[:, None] * centre / held[:, None, None]


def _per_token(scale: Tensor, size: Float[Tensor, "token"], heads: int, head: int) -> Float[Tensor, "token"]:
    """A head's denominators; whether heads or tokens come first, that which is nearer to the size of what is normed."""
    if scale.numel() == len(size):
        return scale.flatten()
    choices = (scale.reshape(heads, -1)[head], scale.reshape(-1, heads)[:, head])
    return min(choices, key=lambda choice: float((choice - size).abs().sum()))


def _rotations(seen: dict[str, Tensor], tokens: int, e: int) -> Iterator[Float[Tensor, "token e e"] | None]:
    """The rotations that the captured cosines and sines may mean; None without any.

    Coordinates i and i + n/2 of the first n turn together (halves), or 2i and 2i + 1 (adjacent); tables name each angle once or
    twice, one after the other or side by side. Coordinates from n on stay.
    """
    if "hook_cos" not in seen or "hook_sin" not in seen:
        yield None
        return
    cos, sin = (seen[name].reshape(-1, seen[name].shape[-1])[-tokens:] for name in ("hook_cos", "hook_sin"))
    width = cos.shape[1]
    readings = [("halves", slice(0, width // 2)), ("adjacent", slice(0, width // 2)), ("adjacent", slice(0, width, 2))]
    if 2 * width <= e:
        readings += [("halves", slice(0, width)), ("adjacent", slice(0, width))]
    for pairing, angles in readings:
        yield _rotation(cos[:, angles], sin[:, angles], e, pairing)


def _rotation(
    cos: Float[Tensor, "token angle"], sin: Float[Tensor, "token angle"], e: int, pairing: str
) -> Float[Tensor, "token e e"]:
    count = torch.arange(cos.shape[1], device=cos.device)
    first, second = (count, count + len(count)) if pairing == "halves" else (2 * count, 2 * count + 1)
    turn = torch.eye(e).to(cos).repeat(len(cos), 1, 1)
    turn[:, first, first] = turn[:, second, second] = cos
    turn[:, first, second], turn[:, second, first] = -sin, sin
    return turn


def _turned(rotation: Tensor | None, maps: Float[Tensor, "token e e"]) -> Float[Tensor, "token e e"]:
    return maps if rotation is None else rotation.to(maps) @ maps


def _constants(attn: Any, layer: int, e: int) -> list[tuple[float, float | None]]:
    """Scales and caps; what the attention module says of itself first."""
    module = attn.original_component
    scales = [getattr(module, "scaling", None), e**-0.5, 1.0, e**-0.5 / (layer + 1)]
    caps = dict.fromkeys((getattr(module, "attn_logit_softcapping", None), None))
    return [(float(scale), cap) for scale in dict.fromkeys(scales) if isinstance(scale, float | int) for cap in caps]


def _with_slope(form: Bilinear, shown: Float[Tensor, "query key"] | None) -> list[Bilinear]:
    """The form, and where scores are shown the form with ALiBi's slope as the last query's first two keys have it."""
    if shown is None or form.cap is not None or len(shown) < 3 or not form.allowed[-1, :2].all():
        return [form]
    beyond = shown[-1, :2].to(form.query.W) - form.scores()[-1, :2]
    return [form, form._replace(slope=float(beyond[1] - beyond[0]))]


def _capped(form: Bilinear) -> Float[Tensor, "query key"]:
    scores = form.scores()
    return scores if form.cap is None else form.cap * (scores / form.cap).tanh()


def _agrees(form: Bilinear, pattern: Float[Tensor, "query key"], shown: Float[Tensor, "query key"] | None) -> bool:
    """Does the softmax over the allowed keys give the pattern (up to an attention sink's share), and the scores what is shown?"""
    scores, tolerance = _capped(form), TOLERANCE[pattern.dtype]
    ours = scores.masked_fill(~form.allowed, -torch.inf).softmax(1)
    fits = bool(((ours - pattern / pattern.sum(1, keepdim=True)).abs() <= tolerance).all())
    if shown is None or not fits:
        return fits
    error = (scores - shown.to(scores))[form.allowed].abs()
    return bool((error <= tolerance * (1 + scores[form.allowed].abs())).all())


def _allowed(form: Bilinear, pattern: Float[Tensor, "query key"]) -> Bool[Tensor, "query key"]:
    """Pairs that the mask lets through, also those whose probability underflows."""
    scores = _capped(form)
    best = scores.masked_fill(~form.allowed, -torch.inf).max(1, keepdim=True).values
    return form.allowed | ((scores - best).exp() <= ABSENT).tril()
