"""What changes during training: weights, the optimiser's moments, the silence of each latent, the weight of the penalty, the step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .adam import Adam, Factored
from .config import PENALISED, TrainConfig
from .layout import Layout, layout_of
from .losses import aux_width
from .parallel.ranks import Ranks
from .rows import Pair

BIAS_RATE = 3.0  # times the learning rate of the matrices
METRICS = ("loss", "fvu", "l0", "dead_share", "is_skipped")
# Of a penalty that is steered: where its weight came to on toys.
FIRST_WEIGHT = {"l1": 1.0, "anneal": 1.0, "tanh": 0.4, "l0": 0.1}
SMOOTH = 0.98  # share of the old in the running means of L0 and of the smallest active value


class TrainState:
    """Everything that a step changes; `tensors()` names all of it for a checkpoint."""

    def __init__(
        self,
        config: TrainConfig,
        weights: dict[str, Tensor],
        layout: Layout | None = None,
        ranks: Ranks | None = None,
    ):
        self.config, self.weights, self.step = config, weights, 0
        self.layout = layout or layout_of(config.dictionary, weights)
        self.ranks = ranks or Ranks()
        W_dec = weights["W_dec"]
        device = W_dec.device
        self.adam = Factored(weights) if config.optimizer == "factored" else Adam(weights)
        self.silent_tokens = torch.zeros(len(W_dec), dtype=torch.int64, device=device)
        self.lr = torch.zeros((), device=device)
        self.k_aux = aux_width(config.dictionary.k, W_dec.shape[1], config.dictionary.latents)
        self.rounds = config.matmul == "bfloat16" or (config.matmul == "auto" and device.type == "cuda")
        self.is_penalised = config.dictionary.activation in PENALISED
        self.is_steered = self.is_penalised and config.sparsity is None
        first = FIRST_WEIGHT.get(config.penalised, 0.0)
        self.weight = torch.tensor(first if config.sparsity is None else config.sparsity, device=device)
        self.excess = torch.zeros((), device=device)
        self.smallest = torch.zeros(config.dictionary.blocks, device=device)
        self.average = {name: w.clone() for name, w in weights.items()} if config.ema else {}

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the numbers that a step gives."""
        return (*METRICS, "sparsity") if self.is_penalised else METRICS

    def multiplied(self, x: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
        """The matrices in the type that they are multiplied in."""
        return (x.bfloat16(), W.bfloat16()) if self.rounds else (x, W)

    def set_rate(self) -> None:
        """Put this step's learning rate on the device."""
        self.lr.fill_(self.config.peak_lr * lr_factor(self.step, self.config))

    def settle(self) -> None:
        """After a step: the running average of the weights (`ema`), whose first steps weigh no more than the later ones."""
        share = min(self.config.ema, (self.step + 1) / (self.step + 10))
        for name, mean in self.average.items():
            mean.lerp_(self.weights[name], 1 - share)

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name; loading copies into these."""
        return {
            **{f"weight.{name}": tensor for name, tensor in self.weights.items()},
            **{f"adam.{name}": tensor for name, tensor in self.adam.tensors().items()},
            **{f"average.{name}": tensor for name, tensor in self.average.items()},
            **({"penalty": self.weight, "excess": self.excess} if self.is_penalised else {}),
            **({"smallest": self.smallest} if self.config.dictionary.activation == "batch_topk" else {}),
            "silent_tokens": self.silent_tokens,
        }

    def result(self) -> dict[str, Tensor]:
        """The trained tensors, as a Dictionary names them (before folding)."""
        w = dict(self.average or self.weights)
        if "log_threshold" in w:
            w["threshold"] = w.pop("log_threshold").exp()
        if self.config.dictionary.activation == "batch_topk":
            w["threshold"] = self.smallest.repeat_interleave(self.layout.block_latents)
        return w


def take_step(
    state: TrainState, update: Callable[[TrainState, Pair], Float[Tensor, "metric"]], pair: Pair
) -> Float[Tensor, "metric"]:
    """One optimiser step on a centred and scaled batch; returns the numbers named by `state.metrics`, on the device."""
    state.set_rate()
    metrics = update(state, pair)
    state.settle()
    state.step += 1
    return metrics


def count_silence(state: TrainState, fired: Bool[Tensor, "latent"], tokens: int) -> None:
    """Latents that fired were heard from; the others have been silent for a batch more. Nothing changes in a skipped step."""
    silent = state.silent_tokens
    heard = torch.where(fired, 0, silent + tokens)
    torch.where(state.adam.is_skipped > 0, silent, heard, out=silent)


def take_along(gradient: Float[Tensor, "row d"], W_dec: Float[Tensor, "row d"]) -> None:
    """Take out of the gradient of unit rows, in place, its part along them (Gao et al. 2024, appendix A.3)."""
    gradient.addcmul_((gradient * W_dec).sum(1, keepdim=True), W_dec, value=-1)


def make_unit(W_dec: Float[Tensor, "row d"], is_skipped: Float[Tensor, ""]) -> None:
    """Bring rows back to unit length, in place, unless the step was skipped."""
    norm = torch.linalg.vector_norm(W_dec, dim=1, keepdim=True)
    W_dec.div_(torch.where(is_skipped > 0, 1.0, norm))


def steer(state: TrainState, l0: Float[Tensor, ""]) -> None:
    """Change the penalty's weight so that L0 comes to k: at a rate proportional to the running mean of log(L0 / k).

    The weight may change e-fold in a hundredth of the run, but no faster than in 20 steps. A skipped step changes nothing.
    """
    rate = min(100 / state.config.steps, 0.05)
    now = (l0.clamp_min(1e-3) / (state.config.dictionary.k * state.config.dictionary.blocks)).log().clamp(-1, 1)
    counts = 1 - state.adam.is_skipped
    state.excess.lerp_(torch.where(counts > 0, now, 0), 0.1 * counts)
    state.weight.mul_((rate * counts * state.excess).exp()).clamp_(1e-8, 1e3)


def lr_factor(step: int, config: TrainConfig) -> float:
    """Learning rate of this step as a share of the peak: linear warm-up, plateau, linear decay to zero."""
    warm, fall = config.warmup_steps, config.decay_steps
    rise = (step + 1) / warm if step + 1 < warm else 1.0
    return min(rise, (config.steps - step) / fall if config.steps - step < fall else 1.0)


def penalty_factor(step: int, config: TrainConfig) -> float:
    """The penalty's weight of this step as a share of the whole: it rises as the learning rate does."""
    return min(1.0, (step + 1) / max(config.warmup_steps, 1))


def annealed_power(step: int, config: TrainConfig, last: float) -> float:
    """The power of the annealed penalty: 1 for the first fifth of the run, then falling linearly to `last` at four fifths."""
    share = (step / config.steps - 0.2) / 0.6
    return 1 - (1 - last) * min(max(share, 0.0), 1.0)
