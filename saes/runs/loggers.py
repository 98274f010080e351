"""Where the numbers of a run go: jsonl always, and what else is asked for and installed.

A logger is anything with `log(line)` and `close()`. A line is a dictionary with `step`, `tokens` and numbers by name; skipped
batches are a list in it, which only jsonl keeps. `train(..., loggers=["tensorboard", mine])` takes names and loggers of your own.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ..errors import UserError
from ..io import atomic_path

PROJECT = "unweave"


@runtime_checkable
class Logger(Protocol):
    """Takes the lines of one run."""

    def log(self, line: dict[str, Any]) -> None:
        """Take one line: `step`, `tokens`, and numbers by name."""
        ...

    def close(self) -> None:
        """The run has ended."""
        ...


class JsonLines:
    """Appends to a file, a line of JSON each."""

    def __init__(self, path: Path):
        self.path = path

    def cut(self, step: int) -> None:
        """Keep the lines up to this step; one that was cut off when its writer was killed goes too."""
        lines = self.path.read_text("utf-8", "replace").splitlines() if self.path.exists() else []
        kept = [line for line in lines if _step_of(line) <= step]
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept))

    def log(self, line: dict[str, Any]) -> None:
        """Write the line."""
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Nothing is held open."""


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


class TensorBoard:
    """Event files in `tensorboard/` of the run's folder."""

    def __init__(self, folder: Path | None, config: dict[str, Any]):
        module = _needed("torch.utils.tensorboard", "tensorboard", "tensorboard")
        self.writer = module.SummaryWriter(str((folder or Path()) / "tensorboard"))
        self.writer.add_text("config", json.dumps(config, indent=1))

    def log(self, line: dict[str, Any]) -> None:
        """Write each number as a scalar of its name."""
        for name, value in numbers(line).items():
            self.writer.add_scalar(name, value, line["step"])

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()


class Tracker:
    """wandb, or trackio, which has the same interface; its own environment variables say where and whether online."""

    def __init__(self, name: str, folder: Path | None, config: dict[str, Any]):
        self.module = _needed(name, name, name)
        where = {"dir": str(folder)} if name == "wandb" and folder is not None else {}
        self.module.init(project=PROJECT, name=folder.name if folder else None, config=config, **where)

    def log(self, line: dict[str, Any]) -> None:
        """Send the numbers."""
        self.module.log(numbers(line), step=line["step"])

    def close(self) -> None:
        """End the run there."""
        self.module.finish()


NAMES = ("tensorboard", "wandb", "trackio")


def open_loggers(wanted: Iterable[str | Logger], folder: Path | None, config: dict[str, Any]) -> list[Logger]:
    """The loggers of a run; UserError for a name that is none of NAMES, or whose package is not installed."""
    return [one if isinstance(one, Logger) else _open(one, folder, config) for one in wanted]


def _open(name: str, folder: Path | None, config: dict[str, Any]) -> Logger:
    if name not in NAMES:
        raise UserError(f"expected loggers {', '.join(NAMES)}; got {name!r}; jsonl is always written")
    return TensorBoard(folder, config) if name == "tensorboard" else Tracker(name, folder, config)


def numbers(line: dict[str, Any]) -> dict[str, float | int]:
    """What a chart can show of a line."""
    return {name: value for name, value in line.items() if isinstance(value, int | float) and name != "step"}


def _needed(module: str, package: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"expected {package} for --loggers {name}; it is not installed; pip install {package}"
        ) from error
