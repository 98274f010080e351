"""A training run's folder: its config, its log, its checkpoint and, at the end, its dictionary.

`metrics.jsonl` has one line every `log_every` steps, and in it the batches that were skipped because they held NaN or infinity
(where a dozen in a row did, training ends with an error); the clock (`tokens_per_s`) is a field of its own, everything else
repeats exactly under the same seed. The checkpoint is one safetensors file, replaced atomically, holding weights, Adam's
moments, dead-latent counters and the step, and the config and data fingerprint that it belongs to; on resume the log is cut
back to the checkpoint's step.
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

from .config import TrainConfig
from .errors import UserError
from .io import atomic_path, read_json, read_tensors, write_json, write_tensors
from .loggers import JsonLines, Logger, open_loggers
from .reports import Reports
from .state import TrainState

if TYPE_CHECKING:
    from .dictionary import Dictionary
    from .rows import Rows


PATIENCE = 12  # steps in a row without a finite loss, after which training ends


class Run:
    """Shows progress, and keeps the files of a run when it has a folder."""

    def __init__(
        self, config: TrainConfig, folder: Path | None, resume: bool, progress: bool, loggers: Iterable[Any] = ()
    ):
        self.config, self.folder = config, folder
        self.finished = False
        self._bar: tqdm | None = None
        self._progress, self._clock = progress, time.perf_counter()
        self._reports, self._steps, self._last_sound = Reports(), list[Tensor](), 0
        self._names: tuple[str, ...] = ()
        self._wanted, self._loggers = loggers, list[Logger]()
        if folder is None:
            return
        if folder.exists() and any(folder.iterdir()):
            if not resume:
                raise UserError(
                    f"expected an empty folder for the run; {folder} has files; give --resume or another --out"
                )
            self._check_same(read_json(folder / "config.json", "the config of a training run"))
            self.finished = (folder / "cfg.json").exists()

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
        if self.folder is not None:
            path = self.folder / "checkpoint.safetensors"
            if path.exists():
                self._restore(path, state, rows)
            write_json(self.folder / "config.json", self.config.to_dict())
            self._cut_log(state.step)
        self._last_sound, self._names = state.step, state.metrics
        files = [] if self.folder is None else [JsonLines(self.folder / "metrics.jsonl")]
        self._loggers = [*files, *open_loggers(self._wanted, self.folder, self.config.to_dict())]
        self._bar = tqdm(
            total=self.config.steps, initial=state.step, desc="train", unit="step", disable=not self._progress
        )

    def _restore(self, path: Path, state: TrainState, rows: Rows) -> None:
        saved = read_tensors(path, "a training checkpoint")
        try:
            about = json.loads(bytes(saved.pop("about").tolist()))
            same, step = about["shards"] == rows.metadata.get("shards"), int(about["step"])
            if same:
                _load_state(state, saved)
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise UserError(
                f"expected a training checkpoint at {path}; it is damaged ({error!r}); use a new --out"
            ) from error
        if not same:
            raise UserError(
                f"expected the Shards that {self.folder} was begun on; got others; give them or a new --out"
            )
        state.step = step

    def _cut_log(self, step: int) -> None:
        assert self.folder is not None
        path = self.folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        kept = [line for line in lines if _step_of(line) <= step]
        with atomic_path(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept))

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
                tqdm.write(f"train: NaN or infinity in batches {listed}: they changed nothing", file=sys.stderr)
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

    def checkpoint(self, state: TrainState, rows: Rows) -> None:
        """Replace the checkpoint every `checkpoint_every` steps; only a run on Shards can use one."""
        if self.folder is None or state.step % self.config.checkpoint_every or "shards" not in rows.metadata:
            return
        self._write(wait=True)
        about = json.dumps({"step": state.step, "shards": rows.metadata["shards"]}).encode()
        tensors = {"about": torch.tensor(list(about), dtype=torch.uint8), **state.tensors()}
        write_tensors(self.folder / "checkpoint.safetensors", tensors)

    def close(self) -> None:
        """End the progress bar's line, and the loggers."""
        if self._bar is not None:
            self._bar.close()
        for logger in self._loggers:
            logger.close()
        self._loggers = []

    def finish(self, state: TrainState, dictionary: Dictionary) -> None:
        """Write what is left of the log, save the dictionary and drop the checkpoint."""
        self._send(state.step)
        self._write(wait=True)
        self.close()
        if state.step < self.config.steps:
            short = f"train: the data ended after {state.step:,} of {self.config.steps:,} steps"
            tqdm.write(short, file=sys.stderr)
        if self.folder is not None:
            dictionary.save(self.folder)
            (self.folder / "checkpoint.safetensors").unlink(missing_ok=True)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line that was cut off when the run was killed


def _load_state(state: TrainState, saved: dict[str, Tensor]) -> None:
    for name, tensor in state.tensors().items():
        tensor.copy_(saved[name])
