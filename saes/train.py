"""Train a dictionary.

    repeat for each batch (x, y), centred and scaled to unit variance (rows.py):
      codes, y_hat, loss, gradient                                  objective.py; plain.py by autograd, step.py by hand for TopK
      optimiser step; learning rate: linear rise, plateau, linear fall to zero                              state.py
      decoder rows back to unit length; latents that fired get their dead counter reset

Decoder rows keep unit length, and the part of their gradient along themselves is removed before the step, so Adam's moments
do not fill with what the renormalisation undoes (Gao et al. 2024, appendix A.3). Biases learn at three times the rate: a step
moves each of the d entries of an encoder row, but a bias only once (docs/log.md has the numbers). What reads where it writes
starts with W_enc = W_dec (random unit rows), a transcoder with rows of its own on each side.

Files of a run: `config.json`, `metrics.jsonl`, `checkpoint.safetensors` (until the run ends), then the dictionary itself.
Nothing is random but the first weights and the order of the rows, both from the seed, so a resumed run takes the same
steps, bit for bit, as one that was never stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .config import TrainConfig
from .device import on_device, stepper
from .dictionary import Dictionary
from .errors import UserError
from .fold import Scaling, fold
from .layout import Layout
from .loggers import Logger
from .objective import typical_value
from .rows import Pair, ShardRows, StreamRows, open_rows
from .run import Run
from .shards import Shards
from .state import TrainState


def train(
    config: TrainConfig,
    data: Shards | Iterable[Any],
    out: str | Path | None = None,
    *,
    resume: bool = False,
    device: str | torch.device | None = None,
    progress: bool = True,
    loggers: Iterable[str | Logger] = (),
) -> Dictionary:
    """Train a dictionary on Shards, or on any iterable of `[token d]` tensors (or Batches), and return it.

    With `out`, the run's files are kept there and, with `resume`, an interrupted run on Shards goes on from its last
    checkpoint. `device` None means CUDA where there is one. `loggers` are names (tensorboard, wandb, trackio) or your own
    (loggers.py), besides metrics.jsonl. Raises UserError for bad settings, a missing site, a folder
    in use, and non-finite activations.
    """
    device = checked_device(data, resume, device)
    run = Run(config, Path(out) if out else None, resume, progress, loggers)
    if run.finished:
        return Dictionary.load(run.folder, device=device)  # type: ignore[arg-type]  # a finished run has a folder
    try:
        with memory_errors(config, device):
            return _train(run, config, data, device)
    finally:
        run.close()


def checked_device(data: Shards | Iterable[Any], resume: bool, device: str | torch.device | None) -> torch.device:
    """The device to train on; UserError where a stream is to be resumed."""
    if resume and not isinstance(data, Shards):
        raise UserError("expected Shards to resume from; a stream cannot be wound forward; train on cached activations")
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


@contextmanager
def memory_errors(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Within the block, on that device, running out of memory is a user's error."""
    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            yield
    except RuntimeError as error:
        # The CPU's allocator has no type of error of its own.
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        shape = config.dictionary
        raise UserError(
            f"expected {device} to hold {shape.latents:,} latents with Adam's moments and a batch of {config.batch:,} tokens; "
            f"it ran out of memory ({str(error).splitlines()[0]}); lower --batch, or --latents"
        ) from error


def _train(run: Run, config: TrainConfig, data: Shards | Iterable[Any], device: torch.device) -> Dictionary:
    session = Session(run, config, open_rows(config, data), device)
    for pair in session.pairs():
        session.take(pair)
    return session.finish()


class Session:
    """A run under way: its rows, its state, its step. `train` drives one, `train_many` (sweep.py) several from the same rows."""

    def __init__(self, run: Run, config: TrainConfig, rows: ShardRows | StreamRows, device: torch.device):
        self.run, self.config, self.rows, self.device = run, config, rows, device
        self.state = TrainState(config, initial_weights(config, rows.layout, device), rows.layout)
        run.restore(self.state, rows)
        self.scaling = rows.scaling.to(device)
        self.step = stepper(self.state)

    def pairs(self, batches: Iterator[Pair] | None = None) -> Iterator[Pair]:
        """The batches that are still to be trained on, on the device; `batches` in place of the rows' own from this step on."""
        batches = self.rows.batches(self.state.step) if batches is None else batches
        return on_device(islice(batches, self.config.steps - self.state.step), self.device)

    def take(self, pair: Pair) -> None:
        """One step."""
        self.run.log(self.state, self.step(scaled(pair, self.scaling, self.rows.layout)))
        self.run.checkpoint(self.state, self.rows)

    def finish(self) -> Dictionary:
        """Fold the scaling into the weights and save."""
        rows = self.rows
        tensors = fold(self.state.result(), self.scaling, rows.layout)
        dictionary = Dictionary(rows.config, tensors, rows.metadata, rows.layout.widths)
        self.run.finish(self.state, dictionary)
        return dictionary


def scaled(pair: Pair, scaling: Scaling, layout: Layout) -> Pair:
    """The pair centred and scaled, one tensor twice if both sides are the same; sites that share a dictionary become tokens."""
    x = (pair.x - scaling.mean_in) / scaling.scale_in
    y = x if pair.y is pair.x else (pair.y - scaling.mean_out) / scaling.scale_out
    if layout.is_shared:
        y = y.reshape(-1, layout.d_out // layout.copies)
        x = y if pair.y is pair.x else x.reshape(-1, layout.d_in // layout.copies)
    return Pair(x, y)


FIRST_THRESHOLD = 0.5  # in units of a typical active value, sqrt(d / k)


def initial_weights(config: TrainConfig, layout: Layout, device: torch.device) -> dict[str, Float[Tensor, "..."]]:
    """Random unit decoder rows; as encoder the same rows where what is read is written, else rows of its own; zero biases."""
    generator = torch.Generator().manual_seed(config.seed)
    shape, blocks = config.dictionary, layout.blocks
    d_in, d_out, latents = blocks[0].reads.stop, layout.d_out // layout.copies, shape.latents

    def unit_rows(count: int, d: int) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(count, d, generator=generator), dim=1)

    W_dec = torch.zeros(latents, d_out)
    for block in blocks:
        W_dec[block.latents, block.writes] = unit_rows(shape.block_latents, block.writes.stop - block.writes.start)
    if shape.is_transcoder:
        W_enc = unit_rows(latents, d_in)
    else:
        # A block of several writes its own site first.
        own = [W_dec[block.latents, block.writes][:, :d_in] for block in blocks]
        W_enc = torch.nn.functional.normalize(torch.cat(own), dim=1) if len(blocks) > 1 else W_dec.clone()
    tensors = {"W_enc": W_enc, "b_enc": torch.zeros(latents), "W_dec": W_dec, "b_dec": torch.zeros(d_out)}
    if shape.skip:
        tensors["W_skip"] = torch.zeros(d_out, d_in)
    if shape.activation == "gated":
        tensors |= {"r_mag": torch.zeros(latents), "b_mag": torch.zeros(latents)}
    if shape.activation == "jumprelu":
        tensors["log_threshold"] = torch.full((latents,), FIRST_THRESHOLD * typical_value(d_in, shape.k)).log()
    return {name: tensor.to(device) for name, tensor in tensors.items()}
