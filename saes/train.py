"""Train a dictionary.

    repeat for each batch (x, y), centred and scaled to unit variance (rows.py):
      codes, y_hat, loss, gradient                                  objective.py; plain.py by autograd, step.py by hand for TopK
      optimiser step; learning rate: linear rise, plateau, linear fall to zero                              state.py
      decoder rows back to unit length; latents that fired get their dead counter reset

Decoder rows keep unit length, and the part of their gradient along themselves is removed before the step, so Adam's moments
do not fill with what the renormalisation undoes (Gao et al. 2024, appendix A.3). Biases learn at three times the rate: a step
moves each of the d entries of an encoder row, but a bias only once (docs/log.md has the numbers). What reads where it writes
starts with W_enc = W_dec (random unit rows), a transcoder with rows of its own on each side.

Files of a run: `config.json`, `metrics.jsonl`, `checkpoint-*.safetensors` (until the run ends), then the dictionary itself.
Nothing is random but the first weights and the order of the rows, both from the seed, so a resumed run takes the same
steps, bit for bit, as one that was never stopped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .config import TrainConfig
from .device import on_device, stepper
from .dictionary import Dictionary
from .errors import UserError
from .fold import Scaling, fold
from .layout import Layout
from .objective import typical_value
from .parallel import own_device, ranks_of_this_run
from .parallel.shares import gathered
from .rows import Pair, ShardRows, StreamRows, open_rows
from .runs.loggers import Logger
from .runs.run import Run
from .runs.stopping import Stopping
from .shards.folder import Shards
from .state import TrainState
from .streamed import Stream


def train(
    config: TrainConfig,
    data: Shards | Iterable[Any],
    out: str | Path | None = None,
    *,
    resume: bool = False,
    device: str | torch.device | None = None,
    progress: bool = True,
    loggers: Iterable[str | Logger] = (),
    keep: int = 1,
    latent_ranks: int = 1,
) -> Dictionary:
    """Train a dictionary on Shards, or on any iterable of `[token d]` tensors (or Batches), and return it.

    With `out`, the run's files are kept there and, with `resume`, an interrupted run on Shards, or on a stream whose text can be
    gone through again, goes on from its last checkpoint, of which the newest `keep` are kept. SIGTERM and Ctrl-C end the
    run after the step under way and a checkpoint, by SystemExit(143) and KeyboardInterrupt (stopping.py). `device` None means
    CUDA where there is one. `loggers` are names (tensorboard, wandb, trackio) or your own (loggers.py), besides metrics.jsonl.
    Under torchrun all processes train one dictionary: `latent_ranks` of them share out its latents, the others a batch's tokens
    (parallel/ranks.py); every process gets the whole dictionary. Raises UserError for bad settings, a missing site, a folder in
    use, and non-finite activations.
    """
    device = own_device(checked_device(data, resume, device))
    ranks = ranks_of_this_run(config, latent_ranks, device)
    if ranks.size > 1 and not isinstance(data, Shards):
        raise UserError("expected Shards under torchrun; a stream has one consumer; cache the activations first")
    run = Run(config, Path(out) if out else None, resume, progress, loggers, keep, ranks)
    if run.finished:
        return Dictionary.load(run.folder, device=device)  # type: ignore[arg-type]  # a finished run has a folder
    try:
        with memory_errors(config, device):
            return _train(run, config, data, device)
    finally:
        run.close()


def checked_device(data: Shards | Iterable[Any], resume: bool, device: str | torch.device | None) -> torch.device:
    """The device to train on; UserError where a stream is to be resumed."""
    if resume and not isinstance(data, Shards) and not (isinstance(data, Stream) and data.source):
        raise UserError(
            "expected Shards to resume from, or a stream of texts that can be gone through again (a list, or a callable that gives "
            "a fresh iterator); this one cannot be wound forward; train on cached activations"
        )
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
    session = Session(run, config, open_rows(config, data, run.saved), device)
    with Stopping() as stopping, closing(session.pairs()) as pairs:
        for pair in pairs:
            session.take(pair)
            if signal := run.ranks.signal(stopping.signal, session.state.step):
                stopping.signal = signal
                session.stop(signal)
                stopping.leave()
    return session.finish()


class Session:
    """A run under way: its rows, its state, its step. `train` drives one, `train_many` (sweep.py) several from the same rows."""

    def __init__(self, run: Run, config: TrainConfig, rows: ShardRows | StreamRows, device: torch.device):
        self.run, self.config, self.rows, self.device = run, config, rows, device
        ranks = run.ranks
        layout = dataclasses.replace(rows.layout, rank=ranks.latent_rank, ranks=ranks.latent)
        self.state = TrainState(config, initial_weights(config, layout, device), layout, ranks)
        run.restore(self.state, rows)
        self.scaling = rows.scaling.to(device)
        self.step = stepper(self.state)

    @property
    def tokens(self) -> int:
        """Tokens seen."""
        return self.state.step * self.config.batch

    def pairs(self, batches: Iterator[Pair] | None = None) -> Generator[Pair, None, None]:
        """The batches that are still to be trained on, on the device; `batches` in place of the rows' own from this step on."""
        batches = self._batches() if batches is None else batches
        return on_device(islice(batches, self.config.steps - self.state.step), self.device)

    def _batches(self) -> Iterator[Pair]:
        rows, ranks = self.rows, self.run.ranks
        if ranks.data == 1:
            return rows.batches(self.state.step)
        assert isinstance(rows, ShardRows)
        if len(rows.rows) < self.config.batch:
            raise UserError(
                f"expected the {len(rows.rows):,} training rows to fill a batch that ranks share; got batch={self.config.batch:,}; "
                "lower --batch, or cache more"
            )
        return rows.batches(self.state.step, (ranks.data_rank, ranks.data))

    def take(self, pair: Pair) -> None:
        """One step."""
        self.run.log(self.state, self.step(scaled(pair, self.scaling, self.rows.layout)))
        self.run.checkpoint(self.state, self.rows)

    def stop(self, signal: int) -> None:
        """Write a checkpoint, since the process is asked to end."""
        self.run.stop(self.state, self.rows, signal)

    def finish(self) -> Dictionary:
        """Fold the scaling into the weights and save; of several ranks the first does, and the others read what it saved."""
        rows, run = self.rows, self.run
        whole = gathered(self.state.result(), rows.layout.config.blocks, run.ranks, everywhere=run.folder is None)
        dictionary = None
        if whole is not None:
            tensors = fold(whole, self.scaling.to(whole["W_dec"].device), rows.layout)
            tensors = {name: tensor.to(self.device) for name, tensor in tensors.items()}
            dictionary = Dictionary(rows.config, tensors, rows.metadata, rows.layout.widths)
        run.finish(self.state, dictionary)
        return dictionary or Dictionary.load(run.folder, device=self.device)  # type: ignore[arg-type]  # it has a folder


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
    """Random unit decoder rows; as encoder the same rows where what is read is written, else rows of its own; zero biases.

    Of a layout that is one rank's share, that rank's rows of the same tensors.
    """
    generator = torch.Generator().manual_seed(config.seed)
    shape, blocks = config.dictionary, layout.blocks
    d_in, d_out = blocks[0].reads.stop, layout.d_out // layout.copies
    latents = len(blocks) * layout.block_latents
    own = layout.rank * layout.block_latents + torch.arange(layout.block_latents)

    W_dec = torch.zeros(latents, d_out)
    for block in blocks:
        d = block.writes.stop - block.writes.start
        W_dec[block.latents, block.writes] = unit_rows(shape.block_latents, d, own, generator)
    if shape.is_transcoder:
        of_all = torch.cat([own + number * shape.block_latents for number in range(len(blocks))])
        W_enc = unit_rows(shape.latents, d_in, of_all, generator)
    else:
        # A block of several writes its own site first.
        read = [W_dec[block.latents, block.writes][:, :d_in] for block in blocks]
        W_enc = torch.nn.functional.normalize(torch.cat(read), dim=1) if len(blocks) > 1 else W_dec.clone()
    tensors = {"W_enc": W_enc, "b_enc": torch.zeros(latents), "W_dec": W_dec, "b_dec": torch.zeros(d_out)}
    if shape.skip:
        tensors["W_skip"] = torch.zeros(d_out, d_in)
    if shape.activation == "gated":
        tensors |= {"r_mag": torch.zeros(latents), "b_mag": torch.zeros(latents)}
    if shape.activation == "jumprelu":
        tensors["log_threshold"] = torch.full((latents,), FIRST_THRESHOLD * typical_value(d_in, shape.k)).log()
    return {name: tensor.to(device) for name, tensor in tensors.items()}


DRAWN = 2**16  # rows at a time; a multiple of 16, in which torch draws


def unit_rows(count: int, d: int, own: Int[Tensor, "own"], generator: torch.Generator) -> Float[Tensor, "own d"]:
    """The rows `own` (ascending) of `count` random unit rows; the others are drawn too, and forgotten."""
    starts = [start for start in range(0, count, DRAWN) if start == 0 or count - start >= 16]
    drawn = []
    for start, stop in zip(starts, [*starts[1:], count], strict=True):
        rows = torch.randn(stop - start, d, generator=generator)
        drawn.append(rows[own[(own >= start) & (own < stop)] - start])
    return torch.nn.functional.normalize(torch.cat(drawn), dim=1)
