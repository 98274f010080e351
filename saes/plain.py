"""One step of training by autograd, for every rule, layout and option: the definition that step.py makes fast for TopK.

    gradient of objective.py over the parts of a batch, summed
    shortened to `clip`; less its component along the decoder rows, which keep unit length (Gao et al. 2024, appendix A.3)
    one optimiser step, biases at three times the rate; decoder rows back to unit length
    the penalty's weight is steered towards L0 = k; the BatchTopK threshold is a running mean of the smallest active value

Dense rules go through in parts of at most HELD pre-activations, whatever the batch, so that [token latent] stays bounded. If the loss
or a gradient is not finite, nothing is changed and the step counts as skipped.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .losses import variation
from .objective import LAST_POWER, Schedule, Terms, objective
from .parallel.ranks import Ranks
from .parallel.shares import is_shared_out
from .rows import Pair
from .state import (
    BIAS_RATE,
    PENALISED,
    SMOOTH,
    TrainState,
    annealed_power,
    count_silence,
    make_unit,
    penalty_factor,
    steer,
    take_along,
)  # fmt: skip

HELD = 2**25  # pre-activations at once: 128 MiB in float32, and their gradients


def update(state: TrainState, pair: Pair) -> Float[Tensor, "metric"]:
    """One step at the rate `state.lr` on a centred and scaled batch; the numbers named by `state.metrics`."""
    config, ranks = state.config, state.ranks
    tokens = len(pair.x) * ranks.data
    is_dead = state.silent_tokens > config.dead_tokens
    weight = state.weight * penalty_factor(state.step, config)
    now = Schedule(weight, annealed_power(state.step, config, LAST_POWER), is_dead)
    terms, gradients = summed(state, pair, now)
    terms = of_all(terms, ranks)
    gradients = {name: ranks.sum_data(gradient, "gradients") for name, gradient in gradients.items()}
    norm = norm_of(gradients, ranks)
    state.adam.begin((terms.loss + norm).isfinite().logical_not().float())
    if config.clip:
        for gradient in gradients.values():
            gradient.mul_((config.clip / norm.clamp_min(1e-30)).clamp_max(1))
    descend(state, gradients)
    l0 = terms.active / tokens
    with torch.no_grad():
        remember(state, terms, tokens)
        if state.is_steered:
            steer(state, l0)
    dead_share = ranks.sum_latent(is_dead.sum()) / config.dictionary.latents
    found = [terms.loss, terms.fvu, l0, dead_share, state.adam.is_skipped]
    return torch.stack([*found, weight] if state.is_penalised else found)


def summed(state: TrainState, pair: Pair, now: Schedule) -> tuple[Terms, dict[str, Tensor]]:
    """Terms and gradients of the batch, or of this rank's share of it, part by part."""
    config, layout, ranks = state.config, state.layout, state.ranks
    tokens = len(pair.x) * ranks.data
    w = {name: tensor.detach().requires_grad_() for name, tensor in state.weights.items()}
    variance, terms, totals = variation(pair.y, ranks), None, None
    for x, y in parts(state, pair):
        new = objective(config, layout, w, x, y, variance, tokens, now, state.multiplied, ranks)
        grads = torch.autograd.grad(new.loss, list(w.values()), allow_unused=True, materialize_grads=True)
        grads = [grad.contiguous() for grad in grads]  # torch's fused Adam walks memory as if it were
        totals = grads if totals is None else [a.add_(b) for a, b in zip(totals, grads, strict=True)]
        new = new._replace(loss=new.loss.detach())
        terms = new if terms is None else together(terms, new)
    assert terms is not None and totals is not None
    return terms, dict(zip(w, totals, strict=True))


def parts(state: TrainState, pair: Pair) -> list[tuple[Tensor, Tensor]]:
    """The parts of a batch that go through at once: `accumulate` of them, more where a dense rule would hold too much."""
    size = -(-len(pair.x) // state.config.accumulate)
    if state.config.dictionary.activation in PENALISED:
        size = min(size, max(1, HELD // len(state.weights["W_dec"])))
    return list(zip(pair.x.split(size), pair.y.split(size), strict=True))


def together(a: Terms, b: Terms) -> Terms:
    """The terms of two parts of one batch."""
    return Terms(a.loss + b.loss, a.fvu + b.fvu, a.active + b.active, a.fired | b.fired, a.smallest.minimum(b.smallest))


def of_all(terms: Terms, ranks: Ranks) -> Terms:
    """The terms of all ranks together; a latent rank's loss is already that of all latents."""
    loss, fvu = ranks.sum_data(torch.stack([terms.loss, terms.fvu]))
    active = ranks.reduce(terms.active, "all")
    return Terms(loss, fvu, active, ranks.any_data(terms.fired), ranks.reduce(terms.smallest, "all", op="min"))


def norm_of(gradients: dict[str, Tensor], ranks: Ranks) -> Float[Tensor, ""]:
    """The norm of the whole gradient, whose rows for latents the latent ranks share out."""
    squares = {name: gradient.norm().square() for name, gradient in gradients.items()}
    alike = sum(square for name, square in squares.items() if not is_shared_out(name))
    own = torch.stack([square for name, square in squares.items() if is_shared_out(name)]).sum()
    return (ranks.sum_latent(own) + alike).sqrt()


@torch.no_grad()
def descend(state: TrainState, gradients: dict[str, Tensor]) -> None:
    """Apply the gradients, unless the step is skipped."""
    W_dec = state.weights["W_dec"]
    take_along(gradients["W_dec"], W_dec)
    for name, gradient in gradients.items():
        rate = state.lr * BIAS_RATE if name.startswith("b_") else state.lr
        state.adam.update(name, state.weights[name], gradient, rate)
    make_unit(W_dec, state.adam.is_skipped)


def remember(state: TrainState, terms: Terms, tokens: int) -> None:
    """Latents that fired were heard from, and the threshold moves towards the smallest active value."""
    count_silence(state, terms.fired, tokens)
    seen = torch.where((state.adam.is_skipped > 0) | terms.smallest.isinf(), state.smallest, terms.smallest)
    state.smallest.lerp_(seen, 1 - min(SMOOTH, state.step / (state.step + 1)))
