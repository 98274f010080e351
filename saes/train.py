"""Train a TopK dictionary.

    repeat for each batch (x, y), centred and scaled to unit variance (rows.py):
      codes  = top-k of W_enc x' + b_enc, ReLU'd         x' = x - b_dec for an SAE, x for a transcoder
      y_hat  = codes W_dec + b_dec (+ W_skip x)
      loss   = fraction_unexplained(y, y_hat) + auxk weight * auxk(dead latents)                     (losses.py)
      Adam step; learning rate: linear rise, plateau, linear fall to zero
      decoder rows back to unit length; latents that fired get their dead counter reset

Decoder rows keep unit length, and the part of their gradient along themselves is removed before the step, so Adam's moments
do not fill with what the renormalisation undoes (Gao et al. 2024, appendix A.3). For an SAE the subtraction of b_dec is
folded into the bias, `b_enc - W_enc b_dec`: the input then needs no gradient, which saves a whole matmul. Biases learn at
three times the rate: a step moves each of the d entries of an encoder row, but a bias only once (docs/log.md has the numbers).
An SAE starts with W_enc = W_dec (random unit rows) and so does a transcoder's pair of sides, each with rows of its own.

Files of a run: `config.json`, `metrics.jsonl`, `checkpoint.safetensors` (until the run ends), then the dictionary itself.
Nothing is random but the first weights and the order of the rows, both from the seed, so a resumed run takes the same
steps, bit for bit, as one that was never stopped.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..kernels import decode, encode_topk
from .config import TrainConfig
from .dictionary import Dictionary, Scaling, fold
from .errors import UserError
from .losses import auxk, fraction_unexplained
from .rows import Pair, Rows, open_rows
from .run import Run
from .shards import Shards

BIAS_RATE = 3.0  # times the learning rate of the matrices


def train(
    config: TrainConfig,
    data: Shards | Iterable[Any],
    out: str | Path | None = None,
    *,
    resume: bool = False,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Dictionary:
    """Train a dictionary on Shards, or on any iterable of `[token d]` tensors (or Batches), and return it.

    With `out`, the run's files are kept there and, with `resume`, an interrupted run on Shards goes on from its last
    checkpoint. `device` None means CUDA where there is one. Raises UserError for bad settings, a missing site, a folder
    in use, and non-finite activations.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if resume and not isinstance(data, Shards):
        raise UserError("expected Shards to resume from; a stream cannot be wound forward; train on cached activations")
    run = Run(config, Path(out) if out else None, resume, progress)
    if run.finished:
        return Dictionary.load(run.folder, device=device)  # type: ignore[arg-type]  # a finished run has a folder
    rows = open_rows(config, data)
    state = TrainState(config, rows, device)
    run.restore(state, rows)
    scaling = rows.scaling.to(device)
    for pair in rows.batches(state.step):
        run.log(state, train_step(state, scaled(pair, scaling, config.dictionary.is_transcoder)))
        run.checkpoint(state, rows)
        if state.step >= config.steps:
            break
    dictionary = Dictionary(rows.config, fold(state.weights, scaling, rows.config), rows.metadata)
    run.finish(state, dictionary)
    return dictionary


def scaled(pair: Pair, scaling: Scaling, is_transcoder: bool) -> Pair:
    """The pair on the scaling's device, centred and scaled; an SAE's two sides are one tensor."""
    device = scaling.mean_in.device
    x = (pair.x.to(device) - scaling.mean_in) / scaling.scale_in
    return Pair(x, (pair.y.to(device) - scaling.mean_out) / scaling.scale_out if is_transcoder else x)


def train_step(state: TrainState, pair: Pair) -> dict[str, float]:
    """One optimiser step; returns the numbers of this batch. UserError if the loss is not finite."""
    config, w = state.config, state.weights
    x, y = pair
    is_sae = not config.dictionary.is_transcoder
    b_enc = w["b_enc"] - w["W_enc"] @ w["b_dec"] if is_sae else w["b_enc"]
    values, indices = encode_topk(x, w["W_enc"], b_enc, config.dictionary.k)
    y_hat = decode(values, indices, w["W_dec"]) + w["b_dec"]
    if "W_skip" in w:
        y_hat = y_hat + x @ w["W_skip"].T
    fvu = fraction_unexplained(y, y_hat)
    is_dead = state.silent_tokens > config.dead_tokens
    loss = fvu
    if config.auxk and is_dead.any():
        loss = loss + config.auxk * auxk(x, y - y_hat, is_dead, w["W_enc"], b_enc, w["W_dec"], state.k_aux)
    if not torch.isfinite(loss):
        raise UserError(
            f"expected a finite loss; got {loss.item()} at step {state.step}; lower --lr or check the activations"
        )
    loss.backward()
    state.update()
    state.count_firing(indices[values > 0], len(x))
    return {
        "loss": loss.item(),
        "fvu": fvu.item(),
        "l0": (values > 0).sum().item() / len(x),
        "dead_share": is_dead.float().mean().item(),
    }


class TrainState:
    """What changes during training: weights, Adam's moments, the silence of each latent, the step."""

    def __init__(self, config: TrainConfig, rows: Rows, device: torch.device):
        self.config, self.step = config, 0
        self.weights = initial_weights(config, rows, device)
        groups = [
            {"params": [tensor], "faster": BIAS_RATE if tensor.ndim == 1 else 1} for tensor in self.weights.values()
        ]
        self.optimizer = torch.optim.Adam(groups, lr=config.peak_lr, eps=1e-8, fused=True)
        self.silent_tokens = torch.zeros(config.dictionary.latents, dtype=torch.int64, device=device)
        self.k_aux = max(config.dictionary.k, self.weights["W_dec"].shape[1] // 2)

    def update(self) -> None:
        """Apply the gradients, then bring the decoder rows back to unit length."""
        W_dec = self.weights["W_dec"]
        with torch.no_grad():
            assert W_dec.grad is not None
            W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.peak_lr * lr_factor(self.step, self.config) * group["faster"]
            torch.nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            W_dec /= W_dec.norm(dim=1, keepdim=True)
        self.step += 1

    def count_firing(self, fired: Tensor, tokens: int) -> None:
        """Latents in `fired` were heard from; the others have been silent for `tokens` more."""
        self.silent_tokens += tokens
        self.silent_tokens[fired] = 0


def lr_factor(step: int, config: TrainConfig) -> float:
    """Learning rate of this step as a share of the peak: linear warm-up, plateau, linear decay to zero."""
    warm, fall = config.warmup * config.steps, config.decay * config.steps
    rise = (step + 1) / warm if step + 1 < warm else 1.0
    return min(rise, (config.steps - step) / fall if config.steps - step < fall else 1.0)


def initial_weights(config: TrainConfig, rows: Rows, device: torch.device) -> dict[str, Float[Tensor, "..."]]:
    """Random unit decoder rows, the same rows as encoder (an SAE) or rows of its own (a transcoder), zero biases."""
    generator = torch.Generator().manual_seed(config.seed)
    d_in, d_out = len(rows.scaling.mean_in), len(rows.scaling.mean_out)
    latents = config.dictionary.latents

    def unit_rows(d: int) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(latents, d, generator=generator), dim=1)

    W_dec = unit_rows(d_out)
    tensors = {
        "W_enc": unit_rows(d_in) if config.dictionary.is_transcoder else W_dec.clone(),
        "b_enc": torch.zeros(latents),
        "W_dec": W_dec,
        "b_dec": torch.zeros(d_out),
    }
    if config.dictionary.skip:
        tensors["W_skip"] = torch.zeros(d_out, d_in)
    return {name: tensor.to(device).requires_grad_() for name, tensor in tensors.items()}
