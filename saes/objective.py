"""What is minimised, for every activation rule: the definition, dense and by autograd.

    loss    = mean over prefixes p of |y - y_hat_p|^2 / |y - mean y|^2  +  weight mean_t penalty_t  +  auxk revival

    y_hat_p = sum over the first p latents of each block of a_j W_dec[j]  + b_dec (+ W_skip x)      p: all of them, or `matryoshka`
    penalty   relu       l1      sum_j a_j / s          anneal   sum_j (a_j / u)^q / k           tanh   sum_j tanh(2 a_j / u) / k
              gated      l1      sum_j relu(pre_j) / s, and with the open gate alone: |y - (relu(pre) W_dec + b_dec)|^2 / |y - mean y|^2,
                                 the decoder held fixed there                     (Rajamanoharan et al. 2024, arXiv 2404.16014, eq. 8)
              jumprelu   l0      sum_j step(pre_j - threshold_j) / k              tanh   as above
    revival   AuxK on the dead latents (losses.py); for jumprelu how far they are below their thresholds, mean relu(threshold - pre) / u

Inputs have unit variance an entry and decoder rows unit length, so an active value is about u = sqrt(d / k); s = k u, so that
every penalty is about 1 where k latents are active. anneal is Karvonen et al. 2024 (arXiv 2408.00113, section 4), tanh Jermyn
et al. 2024 (Transformer Circuits, February update), nested prefixes Bussmann et al. 2025 (arXiv 2503.17547, eq. 3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..kernels import decode, encode_topk
from . import losses
from .config import PENALISED, TrainConfig
from .jumprelu import jumprelu, step
from .layout import Block, Layout
from .parallel.batch_topk import shared_batch_topk
from .parallel.ranks import ALONE, Ranks
from .rules import magnitude

Weights = Mapping[str, Tensor]
Multiplied = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
LAST_POWER = 0.2  # of the annealed penalty


class Schedule(NamedTuple):
    """What changes from step to step: the weight of the penalty, its power (anneal), and which latents are dead."""

    weight: Float[Tensor, ""]
    power: float
    is_dead: Bool[Tensor, "latent"]


class Terms(NamedTuple):
    """Of a part of a batch: what is minimised, its share of the fraction unexplained, active latents, which fired, the smallest value."""

    loss: Float[Tensor, ""]
    fvu: Float[Tensor, ""]
    active: Float[Tensor, ""]
    fired: Bool[Tensor, "latent"]
    smallest: Float[Tensor, "block"]


class Active(NamedTuple):
    """A block's activations: values at indices `[token width]`, or of all its latents where indices is None; and its penalty."""

    values: Float[Tensor, "token width"]
    indices: Int[Tensor, "token width"] | None
    penalty: Float[Tensor, ""]
    pre: Float[Tensor, "token latent"] | None = None


def objective(
    config: TrainConfig,
    layout: Layout,
    w: Weights,
    x: Float[Tensor, "token d_in"],
    y: Float[Tensor, "token d_out"],
    variance: Float[Tensor, ""],
    tokens: int,
    now: Schedule,
    multiplied: Multiplied,
    ranks: Ranks = ALONE,
) -> Terms:
    """The terms of a part `x, y` of a batch of `tokens` tokens whose summed squares about its mean are `variance`.

    Of several ranks each gives the terms of its own tokens (to be added) and latents (whose sums are made here).
    """
    shape = config.dictionary
    if shape.is_sae:
        x = ranks.spread(x - w["b_dec"])
    blocks = layout.blocks
    active = [activate(config, of_block(w, block), x[:, block.reads], now, multiplied, ranks) for block in blocks]
    base = w["b_dec"] + (x @ w["W_skip"].T if "W_skip" in w else 0)
    errors = [y - y_hat for y_hat in reconstructions(active, w["W_dec"], base, blocks, layout.prefixes, ranks)]
    loss = torch.stack([error.square().sum() for error in errors]).mean() / variance
    if shape.activation in PENALISED:
        penalties = torch.stack([one.penalty for one in active]).sum()
        loss = loss + now.weight / tokens * ranks.joined(penalties, "numbers")
    if shape.activation == "gated":
        loss = loss + gate_error(active, w["W_dec"], y, base, blocks, ranks) / variance
    if config.auxk:
        share = config.auxk * len(x) * ranks.data / tokens
        loss = loss + share * revival(config, w, x, errors[-1], active, blocks, now.is_dead, ranks)
    return Terms(loss, errors[-1].detach().square().sum() / variance, *counted(active, blocks))


def typical_value(d: int, k: int) -> float:
    """u of the module header: about the value of an active latent of k, of a row of d entries of unit variance."""
    return (d / k) ** 0.5


def of_block(w: Weights, block: Block) -> dict[str, Tensor]:
    """The encoder's tensors of one block."""
    return {name: w[name][block.latents] for name in ("W_enc", "b_enc", "log_threshold", "r_mag", "b_mag") if name in w}


def activate(
    config: TrainConfig,
    w: Weights,
    x: Float[Tensor, "token d"],
    now: Schedule,
    multiplied: Multiplied,
    ranks: Ranks,
) -> Active:
    """What is active on each token, differentiable, with the penalty summed over tokens."""
    shape, none = config.dictionary, x.new_zeros(())
    x_cast, W_enc = multiplied(x, w["W_enc"])
    if shape.activation == "topk":
        own = encode_topk(x_cast, W_enc, w["b_enc"], min(shape.k, len(W_enc)))
        return Active(*ranks.top(*own, shape.k), none)
    if shape.activation == "batch_topk":
        return Active(*shared_batch_topk(x_cast, W_enc, w["b_enc"], shape.k, ranks), none)
    pre = (x_cast @ W_enc.T).to(x.dtype) + w["b_enc"]
    unit = typical_value(x.shape[1], shape.k)
    if shape.activation == "gated":
        opened = pre.relu()
        own = {name: w[name] for name in ("r_mag", "b_mag")}
        values = magnitude(pre, w["b_enc"], own) * (pre > 0)
        return Active(values, None, opened.sum() / (shape.k * unit), pre)
    if shape.activation == "relu":
        values = pre.relu()
        return Active(values, None, penalty(config.penalised, values / unit, shape.k, now.power), pre)
    threshold = w["log_threshold"].exp()
    values = jumprelu(pre, threshold, config.bandwidth)
    if config.penalised == "l0":
        return Active(values, None, step(pre, threshold, config.bandwidth).sum() / shape.k, pre)
    return Active(values, None, penalty("tanh", values / unit, shape.k, now.power), pre)


def penalty(kind: str, values: Float[Tensor, "token latent"], k: int, power: float) -> Float[Tensor, ""]:
    """Sum over tokens and latents, of values in units of a typical active one, over k."""
    if kind == "tanh":
        return torch.tanh(2 * values).sum() / k
    if kind == "anneal":
        return (values + 1e-6 * (values > 0)).clamp_min(1e-12).pow(power).mul(values > 0).sum() / k
    return values.sum() / k


def reconstructions(
    active: list[Active],
    W_dec: Float[Tensor, "latent d_out"],
    base: Float[Tensor, "*token d_out"],
    blocks: list[Block],
    prefixes: list[int],
    ranks: Ranks,
) -> list[Float[Tensor, "token d_out"]]:
    """The output of each nested prefix, the whole last."""
    whole, start, out = base, 0, []
    for stop in prefixes:
        for one, block in zip(active, blocks, strict=True):
            part = contribution(one, W_dec[block.latents, block.writes], start, stop)
            whole = whole + torch.nn.functional.pad(ranks.joined(part), (W_dec.shape[1] - part.shape[1], 0))
        out.append(whole)
        start = stop
    return out


def contribution(active: Active, W_dec: Float[Tensor, "latent d"], start: int, stop: int) -> Float[Tensor, "token d"]:
    """What the latents of one range write."""
    if active.indices is None:
        return active.values[:, start:stop] @ W_dec[start:stop]
    is_all = start == 0 and stop == len(W_dec)
    inside = active.values if is_all else active.values * ((active.indices >= start) & (active.indices < stop))
    return decode(inside, active.indices, W_dec.contiguous())


def gate_error(
    active: list[Active],
    W_dec: Float[Tensor, "latent d_out"],
    y: Float[Tensor, "token d_out"],
    base: Float[Tensor, "*token d_out"],
    blocks: list[Block],
    ranks: Ranks,
) -> Float[Tensor, ""]:
    """Squared error of what the open gates alone would write, with the decoder, bias and skip path held fixed."""
    opened = [one._replace(values=one.pre.relu()) for one in active if one.pre is not None]
    (y_hat,) = reconstructions(opened, W_dec.detach(), base.detach(), blocks, [blocks[0].latents.stop], ranks)
    return (y - y_hat).square().sum()


def revival(
    config: TrainConfig,
    w: Weights,
    x: Float[Tensor, "token d_in"],
    error: Float[Tensor, "token d_out"],
    active: list[Active],
    blocks: list[Block],
    is_dead: Bool[Tensor, "latent"],
    ranks: Ranks,
) -> Float[Tensor, ""]:
    """The loss that revives dead latents, mean over tokens and blocks."""
    total = x.new_zeros(())
    for one, block in zip(active, blocks, strict=True):
        dead, own = is_dead[block.latents], of_block(w, block)
        if config.dictionary.activation == "jumprelu":
            assert one.pre is not None
            unit = typical_value(own["W_enc"].shape[1], config.dictionary.k)
            below = ((own["log_threshold"].exp() - one.pre).relu() * dead).sum()
            count = ranks.sum_latent(dead.sum()).clamp_min(1)
            total = total + ranks.joined(below, "numbers") / (len(x) * ranks.data * count * unit)
        else:
            W_dec = w["W_dec"][block.latents, block.writes].contiguous()
            k_aux = losses.aux_width(config.dictionary.k, W_dec.shape[1], config.dictionary.block_latents)
            rows = x[:, block.reads], error[:, block.writes]
            total = total + losses.auxk(*rows, dead, own["W_enc"], own["b_enc"], W_dec, k_aux, ranks)
    return total / len(blocks)


@torch.no_grad()
def counted(
    active: list[Active], blocks: list[Block]
) -> tuple[Float[Tensor, ""], Bool[Tensor, "latent"], Float[Tensor, "block"]]:
    """How many are active, which latents fired, and the smallest active value of each block."""
    heard, smallest, count = [], [], active[0].values.new_zeros(())
    for one, block in zip(active, blocks, strict=True):
        is_active = one.values > 0
        count = count + is_active.sum()
        smallest.append(torch.where(is_active, one.values, torch.inf).min())
        latents = block.latents.stop - block.latents.start
        heard.append(is_active.any(0) if one.indices is None else fired(one.values, one.indices, latents))
    return count, torch.cat(heard), torch.stack(smallest)


def fired(values: Float[Tensor, "token k"], indices: Int[Tensor, "token k"], latents: int) -> Bool[Tensor, "latent"]:
    """Which latents are active on any token."""
    hits = torch.zeros(latents, dtype=torch.int64, device=values.device)
    return hits.scatter_add_(0, indices.reshape(-1), (values > 0).long().reshape(-1)) > 0
