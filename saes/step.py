"""One step of training a TopK dictionary: forward, gradient and update, by hand and sparse.

With x, y centred and scaled, x' = x - b_dec for an SAE and x for a transcoder:

    v, i   = top k of W_enc x' + b_enc, ReLU'd                              [token k]
    e      = y - (sum_j v_j W_dec[i_j] + b_dec (+ W_skip x))                [token d_out]
    loss   = |e|^2 / |y - mean y|^2  +  auxk (|e - e_aux|^2 / |e|^2)        losses.py; e_aux decodes the top dead latents

    g      = d loss / d y_hat = -2 e / |y - mean y|^2      dv_j = <g, W_dec[i_j]> where v_j > 0      (the same for aux)
    W_dec  gets sum over slots v g,  W_enc  sum over slots dv x',  b_enc  sum over slots dv        latent by latent
    b_dec  gets sum over tokens g, less W_enc^T d b_enc for an SAE       W_skip  gets g^T x

which is what autograd gives for losses.py (a test compares them), without a [token latent] matrix and, on the CPU, without a [latent d]
gradient: latents go by in blocks, and a block's gradient is summed, used by Adam and forgotten while it is in the cache. Decoder rows
keep unit length, and the part of their gradient along themselves is removed first, so Adam's moments do not fill with what
the renormalisation undoes (Gao et al. 2024, appendix A.3).

AuxK needs many latents a token (k_aux = d / 2), which would cost several times the rest of the step. Its loss is a mean
over tokens, so it is estimated on every n-th token: as many as give it about the slots of the main loss. On a GPU, where no
shape may depend on how many latents are dead, it holds the pre-activations of these few tokens, [token/n latent].

Nothing is read back from the device. If the loss is not finite, nothing is updated, and the flag in METRICS says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..kernels import contract, decode, encode_topk, list_by_latent, sae_gradient, select_topk, which
from .adam import Adam
from .losses import variation
from .objective import fired
from .rows import Pair
from .state import BIAS_RATE, TrainState, count_silence, make_unit, take_along

BLOCK = 1024  # latents whose gradient is held at a time, on the CPU


class Slots(NamedTuple):
    """Codes, the rows that they came from, and the cotangents of what they decode to; a value of 0 is an empty slot."""

    values: Float[Tensor, "token k"]
    indices: Int[Tensor, "token k"]
    x: Float[Tensor, "token d_in"]
    g: Float[Tensor, "token d_out"]


def applies(state: TrainState) -> bool:
    """Whether this step does what is asked for: TopK without prefixes, by Adam, the batch at once."""
    config = state.config
    shape = config.dictionary
    usual = config.optimizer == "adam" and config.accumulate == 1 and not config.clip
    return shape.activation == "topk" and usual and shape.blocks == 1 and len(shape.prefixes) == 1


@torch.no_grad()
def update(state: TrainState, pair: Pair) -> Float[Tensor, "metric"]:
    """The step itself, at the rate `state.lr`: on a GPU the same work whatever the data, so that it can be captured."""
    config, w, ranks = state.config, state.weights, state.ranks
    is_sae, k = config.dictionary.is_sae, config.dictionary.k
    tokens = len(pair.x) * ranks.data
    x = pair.x - w["b_dec"] if is_sae else pair.x
    values, indices = encode_topk(*state.multiplied(x, w["W_enc"]), w["b_enc"], min(k, len(w["W_enc"])))
    values, indices = ranks.top(values, indices, k)
    y_hat = ranks.joined(decode(values, indices, w["W_dec"])) + w["b_dec"]
    if "W_skip" in w:
        y_hat += x @ w["W_skip"].T
    error = pair.y - y_hat
    variance = variation(pair.y, ranks)
    loss = fvu = ranks.sum_data(error.square().sum()) / variance
    main = Slots(values, indices, x, error * (-2 / variance))
    slots = [main]

    is_dead = state.silent_tokens > config.dead_tokens
    if config.auxk and (aux := dead_slots(state, x, error, is_dead)) is not None:
        loss = loss + aux[0]
        slots.append(aux[1])

    state.adam.begin(torch.isfinite(loss).logical_not().float())
    descend(state, slots, is_sae)
    count_silence(state, ranks.any_data(fired(values, indices, len(w["W_dec"]))), tokens)
    l0 = ranks.reduce((values > 0).sum(), "all") / tokens
    dead_share = ranks.sum_latent(is_dead.sum()) / config.dictionary.latents
    return torch.stack([loss, fvu, l0, dead_share, state.adam.is_skipped])


def dead_slots(
    state: TrainState,
    x: Float[Tensor, "token d_in"],
    error: Float[Tensor, "token d_out"],
    is_dead: Bool[Tensor, "latent"],
) -> tuple[Float[Tensor, ""], Slots] | None:
    """AuxK's loss and slots, on every n-th token of the batch; None where the CPU sees that no latent is dead."""
    w, k_aux, ranks = state.weights, state.k_aux, state.ranks
    stride = max(1, round(k_aux / state.config.dictionary.k))
    first = -ranks.data_rank * len(x) % stride  # of this rank's share
    x, target = (torch.slice_copy(rows, 0, first, None, stride) for rows in (x, error))
    count = ranks.sum_latent(is_dead.sum())
    if runs_in_blocks(x):
        if not count:
            return None
        dead = is_dead.nonzero().squeeze(1)
        values, indices = best_dead(state, x, dead, min(k_aux, len(dead)))
    else:
        pre = torch.addmm(torch.where(is_dead, w["b_enc"], -torch.inf), x, w["W_enc"].T)
        values, indices = pre.topk(min(k_aux, len(is_dead)), dim=1, sorted=ranks.latent > 1)
        values = torch.where(values == -torch.inf, 0, values) if ranks.latent == 1 else values
    values, indices = ranks.top(values, indices, k_aux)
    # Scaled down when fewer than k_aux are dead.
    weight = state.config.auxk * (count.to(x.dtype) / k_aux).clamp_max(1)
    scale = weight / ranks.sum_data(target.square().sum()).clamp_min(1e-12)
    missed = target - ranks.joined(decode(values, indices, w["W_dec"]))
    return ranks.sum_data(missed.square().sum()) * scale, Slots(values, indices, x, missed * (-2 * scale))


def best_dead(
    state: TrainState, x: Float[Tensor, "token d_in"], dead: Int[Tensor, "dead"], k: int
) -> tuple[Float[Tensor, "token k"], Int[Tensor, "token k"]]:
    """The k largest pre-activations of the dead latents, whatever their sign."""
    w = state.weights
    if not k:
        return x.new_zeros(len(x), 0), dead.new_zeros(len(x), 0)
    values, indices = select_topk(*state.multiplied(x, w["W_enc"][dead]), w["b_enc"][dead], k)
    return values, dead[indices]


def descend(state: TrainState, slots: list[Slots], is_sae: bool) -> None:
    """Form the gradients, add those of other data ranks, and apply them, unless the step is skipped."""
    w, adam, lr, ranks = state.weights, state.adam, state.lr, state.ranks
    assert isinstance(adam, Adam)

    def summed(gradient: Tensor) -> Tensor:
        return ranks.sum_data(gradient, "gradients")

    d_b_enc, of_rows = gradients(slots, w["W_dec"])
    d_b_enc = summed(d_b_enc)
    d_b_dec = summed(slots[0].g.sum(0)) - (ranks.sum_latent(d_b_enc @ w["W_enc"], "gradients") if is_sae else 0)
    if "W_skip" in w:
        adam.update("W_skip", w["W_skip"], summed(slots[0].g.T @ slots[0].x), lr)
    for rows, d_W_enc, d_W_dec in of_rows:
        W_dec = w["W_dec"] if rows is None else w["W_dec"][rows]
        d_W_enc, d_W_dec = summed(d_W_enc), summed(d_W_dec)
        take_along(d_W_dec, W_dec)
        adam.update("W_enc", w["W_enc"], d_W_enc, lr, rows)
        adam.update("W_dec", w["W_dec"], d_W_dec, lr, rows)
        make_unit(W_dec, adam.is_skipped)
    adam.update("b_enc", w["b_enc"], d_b_enc, lr * BIAS_RATE)
    adam.update("b_dec", w["b_dec"], d_b_dec, lr * BIAS_RATE)


Rows = tuple[slice | None, Float[Tensor, "range d_in"], Float[Tensor, "range d_out"]]


def gradients(
    slots: list[Slots], W_dec: Float[Tensor, "latent d_out"]
) -> tuple[Float[Tensor, "latent"], Iterable[Rows]]:
    """Gradient of b_enc, and of the rows of W_enc and W_dec: block by block on the CPU, else all of them (None) at once."""
    if runs_in_blocks(W_dec):
        return gradients_in_blocks(slots, W_dec)
    parts = [sae_gradient(part.g, part.x, part.values, part.indices, W_dec)[1:] for part in slots]
    d_W_dec, d_W_enc, d_b_enc = (reduce(torch.add, terms) for terms in zip(*parts, strict=True))
    return d_b_enc, [(None, d_W_enc, d_W_dec)]


def gradients_in_blocks(
    slots: list[Slots], W_dec: Float[Tensor, "latent d_out"]
) -> tuple[Float[Tensor, "latent"], Iterator[Rows]]:
    """The same, a block's gradient at a time, each made when it is asked for."""
    latents = len(W_dec)
    x, g = torch.cat([part.x for part in slots]), torch.cat([part.g for part in slots])
    of_latent = torch.cat([part.indices.reshape(-1) for part in slots])
    values = torch.cat([part.values.reshape(-1) for part in slots])
    d_values = torch.cat([contract(part.g, part.indices, W_dec).reshape(-1) for part in slots]) * (values != 0)
    width = torch.cat([part.indices.new_full((len(part.x),), part.indices.shape[1]) for part in slots])
    lists = list_by_latent(of_latent, torch.arange(len(x), device=x.device).repeat_interleave(width), latents)

    def blocks() -> Iterator[Rows]:
        for start in range(0, latents, BLOCK):
            stop = min(start + BLOCK, latents)
            yield slice(start, stop), lists.sum(d_values, x, start, stop), lists.sum(values, g, start, stop)

    return values.new_zeros(latents).index_add_(0, of_latent, d_values), blocks()


def runs_in_blocks(like: Tensor) -> bool:
    """Whether these tensors take the CPU path, where shapes may depend on the data."""
    choice = which("sae_gradient", device=like.device, dtype=like.dtype)
    return not isinstance(choice, list) and choice.path == "cpu"
