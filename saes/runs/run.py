"""A training run's folder: its config, its log, its checkpoints and, at the end, its dictionary.

`metrics.jsonl` has one line every `log_every` steps, and in it the batches that were skipped because they held NaN or infinity
(where a dozen in a row did, training ends with an error); the clock (`tokens_per_s`) is a field of its own, everything else
repeats exactly under the same seed. A checkpoint (checkpoints.py) holds weights, Adam's moments, dead-latent counters and the
step, the numbers that are not in the log yet, and which data it belongs to and how far into it (`Rows.cursor`); on
resume the log is cut back to the checkpoint's step. One process at a time has the folder (lock.py).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from ..config import TrainConfig
from ..errors import UserError
from ..io import is_temporary, read_json, write_json
from ..parallel.ranks import ALONE, Mesh, Ranks
from ..state import TrainState
from .checkpoints import Checkpoints
from .lock import FolderLock
from .loggers import JsonLines, Logger, open_loggers
from .reports import Reports
from .stopping import NAMES

if TYPE_CHECKING:
    from ..dictionary import Dictionary
    from ..rows import Rows


PATIENCE = 12  # steps in a row without a finite loss, after which training ends


class Run:
    """Shows progress, and keeps the files of a run when it has a folder; `saved` is the checkpoint that it goes on from."""

    def __init__(
        self, config: TrainConfig, folder: Path | None, resume: bool, progress: bool, loggers: Iterable[Any] = (), keep: int = 1,
        ranks: Ranks = ALONE,
    ):  # fmt: skip
        self.config, self.folder, self.resume, self.ranks = config, folder, resume, ranks
        self.finished, self.saved = False, None
        self._bar: tqdm | None = None
        self._progress, self._clock = progress and ranks.is_first, time.perf_counter()
        self._reports, self._steps, self._last_sound = Reports(), list[Tensor](), 0
        self._names: tuple[str, ...] = ()
        self._wanted, self._loggers = loggers, list[Logger]()
        self._lock: FolderLock | None = None
        self._is_in = False
        self.checkpoints = None if folder is None else checkpoints_of(folder, keep, ranks, config)
        if folder is not None and ranks.told(folder.exists()):
            self._enter(folder)

    def _enter(self, folder: Path) -> None:
        """Take the folder for this process, or for all ranks, and look at what is in it."""
        self._is_in = True
        if self.ranks.is_first:
            self._take(folder)
        self.finished = self.ranks.told((folder / "cfg.json").exists())
        assert self.checkpoints is not None
        if not self.finished:
            self.saved = self.checkpoints.latest()

    def _take(self, folder: Path) -> None:
        self._lock = FolderLock(folder)
        assert self.checkpoints is not None
        # What a killed writer left has no name yet, and is nothing.
        if all(is_temporary(path.name) for path in folder.iterdir()):
            self.checkpoints.remove_halves()
            return
        if not self.resume:
            raise UserError(f"expected an empty folder for the run; {folder} has files; give --resume or another --out")
        self._check_same(read_json(folder / "config.json", "the config of a training run"))
        self.checkpoints.remove_halves()
        if (folder / "cfg.json").exists():  # a run that was killed just before it would have removed them
            self.checkpoints.remove_all()

    def _check_same(self, old: dict[str, Any]) -> None:
        now = json.loads(json.dumps(self.config.to_dict()))
        # A setting that the run's version did not have is as it was then: the default.
        old = {**json.loads(json.dumps(TrainConfig().to_dict())), **old}
        differ = [key for key in now if old.get(key) != now[key]]
        if differ:
            came = ", ".join(f"{key} {now[key]} instead of {old.get(key)}" for key in differ)
            raise UserError(
                f"expected to resume {self.folder} with the settings it was begun with; got {came}; use a new --out"
            )

    def restore(self, state: TrainState, rows: Rows) -> None:
        """Continue from the checkpoint of this folder, if there is one; begin the folder otherwise."""
        files = list[Logger]()
        self._last_sound, self._names = state.step, state.metrics
        if self.folder is not None:
            if not self._is_in:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._enter(self.folder)
            if self.saved is not None:
                self._restore(*self.saved, state, rows)
                self.saved = None  # which is as large as the state
        if self.folder is not None and self.ranks.is_first:
            write_json(self.folder / "config.json", self.config.to_dict())
            log = JsonLines(self.folder / "metrics.jsonl")
            log.cut(state.step)
            files = [log]
        if self.ranks.is_first:
            self._loggers = [*files, *open_loggers(self._wanted, self.folder, self.config.to_dict())]
        self._bar = tqdm(
            total=self.config.steps, initial=state.step, desc="train", unit="step", disable=not self._progress
        )
        self._clock = time.perf_counter()

    def _restore(self, about: dict[str, Any], saved: dict[str, Tensor], state: TrainState, rows: Rows) -> None:
        try:
            same, step = belongs(about, rows), int(about["step"])
            if same:
                _load_state(state, saved)
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise UserError(
                f"expected a training checkpoint in {self.folder}; it is damaged ({error!r}); use a new --out"
            ) from error
        if not same:
            what = "Shards" if "shards" in about else "stream"
            raise UserError(
                f"expected the {what} that {self.folder} was begun on; got others; give them or a new --out"
            )
        state.step = step
        self._last_sound = about.get("last_sound", step)
        self._steps = list(saved.get("unwritten", torch.zeros(0)).to(state.lr.device))
        self._compare(about.get("on", []), surroundings(state))

    def _compare(self, before: list[str], now: list[str]) -> None:
        differ = [f"{one} instead of {old}" for old, one in zip(before, now, strict=False) if old != one]
        if differ:
            self._say(
                f"note: {self.folder} goes on with {', '.join(differ)}: from here its numbers may differ in the last bits"
            )

    def log(self, state: TrainState, metrics: Float[Tensor, "metric"]) -> None:
        """Show a step, and write a line every `log_every` steps, as soon as its numbers have left the device."""
        self._steps.append(metrics)
        assert self._bar is not None
        self._bar.update()
        if not state.step % self.config.log_every or state.step >= self.config.steps:
            self._send(state.step)
        self._write()

    def _send(self, step: int) -> None:
        """Start to fetch the numbers of the steps since the last line."""
        if not self._steps:
            return
        now = time.perf_counter()
        rate = len(self._steps) * self.config.batch / max(now - self._clock, 1e-9)
        self._reports.send((step, rate), torch.stack(self._steps))
        self._clock, self._steps = now, []

    def _write(self, wait: bool = False) -> None:
        """Write the lines whose numbers have arrived."""
        for (step, rate), rows in self._reports.arrived(wait):
            steps = {
                number: dict(zip(self._names, row, strict=True))
                for number, row in enumerate(rows, step - len(rows) + 1)
            }
            skipped = [number for number, row in steps.items() if row.pop("is_skipped")]
            sound = [number for number in steps if number not in skipped]
            self._last_sound = sound[-1] if sound else self._last_sound
            if step - self._last_sound >= PATIENCE:
                raise UserError(
                    f"expected a finite loss; got none in steps {self._last_sound + 1} to {step}; "
                    "lower --lr or check the activations"
                )
            seen = steps[sound[-1]] if sound else {}
            line = {"step": step, "tokens": step * self.config.batch, **seen, "tokens_per_s": round(rate, 1)}
            if skipped:
                line["skipped"] = skipped
                listed = ", ".join(map(str, skipped))
                self._say(f"train: NaN or infinity in batches {listed}: they changed nothing")
            self._show(line)

    def _show(self, line: dict[str, Any]) -> None:
        assert self._bar is not None
        shown = {"loss": float("nan"), "fvu": float("nan"), "l0": 0.0, "dead_share": 0.0, **line}
        self._bar.set_postfix_str(
            f"loss {shown['loss']:.3f} fvu {shown['fvu']:.3f} L0 {shown['l0']:.1f} "
            f"dead {shown['dead_share']:.1%} {shown['tokens_per_s'] / 1000:.1f}k tok/s",
            refresh=False,
        )
        for logger in self._loggers:
            logger.log(line)

    def checkpoint(self, state: TrainState, rows: Rows, now: bool = False) -> bool:
        """Write a checkpoint every `checkpoint_every` steps, or `now` and wait for it; whether this run can have one.

        Only a run on Shards, or on a stream that can be made anew, can use one.
        """
        if self.checkpoints is None or not rows.source:
            return False
        if now or not state.step % self.config.checkpoint_every:
            self._write(wait=True)
            cursor, of_rows = rows.cursor(state.step)
            about = {**rows.source, "cursor": cursor, "last_sound": self._last_sound, "on": surroundings(state)}
            unwritten = {"unwritten": torch.stack(self._steps)} if self._steps else {}
            self.checkpoints.save(state.step, about, {**state.tensors(), **of_rows, **unwritten}, wait=now)
        return True

    def stop(self, state: TrainState, rows: Rows, signal: int) -> None:
        """A signal asks to end: write a checkpoint and say how to go on."""
        kept = self.checkpoint(state, rows, now=True)
        how = (
            "a checkpoint is written: the same command with --resume goes on"
            if kept
            else "nothing of it can be resumed"
        )
        where = "" if self.folder is None else f"{self.folder}: "
        step = f"{state.step:,} of {self.config.steps:,}"
        self._say(f"train: {where}stopped by {NAMES[signal]} after step {step}; {how}")  # type: ignore[index]

    def close(self) -> None:
        """End the progress bar's line, the loggers and what is being written, and let go of the folder."""
        if self._bar is not None:
            self._bar.close()
        for logger in self._loggers:
            logger.close()
        self._loggers = []
        try:
            if self.checkpoints is not None:
                self.checkpoints.wait()
        finally:
            if self._lock is not None:
                self._lock.release()

    def _say(self, text: str) -> None:
        if self.ranks.is_first:
            tqdm.write(text, file=sys.stderr)

    def finish(self, state: TrainState, dictionary: Dictionary | None) -> None:
        """Write what is left of the log, save the dictionary (None: this is not the first rank) and drop the checkpoints."""
        self._send(state.step)
        self._write(wait=True)
        if state.step < self.config.steps:
            short = f"train: the data ended after {state.step:,} of {self.config.steps:,} steps"
            self._say(short)
        if self.folder is not None and self.checkpoints is not None:
            self.checkpoints.wait()
            if dictionary is not None:
                dictionary.save(self.folder)
            self.ranks.wait()
            self.checkpoints.remove_all()
        self.close()


def checkpoints_of(folder: Path, keep: int, ranks: Ranks, config: TrainConfig) -> Checkpoints:
    """The checkpoints of a run by one process, or by several."""
    if not isinstance(ranks, Mesh):
        return Checkpoints(folder, keep)
    from ..parallel.sharded import ShardedCheckpoints

    return ShardedCheckpoints(folder, keep, ranks, config.dictionary.blocks)


def belongs(about: dict[str, Any], rows: Rows) -> bool:
    """Whether a checkpoint was written by a run on the same data."""
    return bool(rows.source) and all(about.get(name) == value for name, value in rows.source.items())


def surroundings(state: TrainState) -> list[str]:
    """What the last bits of a result may depend on, besides everything that is asked for."""
    return [f"torch {torch.__version__}", f"{torch.get_num_threads()} threads", f"device {state.lr.device.type}"]


def _load_state(state: TrainState, saved: dict[str, Tensor]) -> None:
    for name, tensor in state.tensors().items():
        tensor.copy_(saved[name])
