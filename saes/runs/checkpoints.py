"""Checkpoints of a training run, written while it goes on: the newest few, each whole or passed over.

    checkpoint-00000400.safetensors     every tensor of the run, and in the metadata `about` (JSON) and `xxh3`, a checksum of both

`save` copies the tensors (from CUDA to pinned memory, in the order of the current stream, without waiting) and a thread
writes the copy; one write at most is under way, so a second `save` waits for the first. The file gets its name when it is
on the disk, and only then the oldest ones are removed: a run that is killed at any moment has its last whole checkpoint.
`latest` reads the newest one whose checksum holds; a damaged one is named on standard error and the one before is taken.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from xxhash import xxh3_128

from ..errors import UserError
from ..io import is_temporary, read_tensors, write_tensors

Saved = tuple[dict[str, Any], dict[str, Tensor]]
OLD = "checkpoint.safetensors"  # the only checkpoint of earlier versions


class Checkpoints:
    """The checkpoints of a run's folder, of which the newest `keep` stay."""

    def __init__(self, folder: Path, keep: int = 1):
        if keep < 1:
            raise UserError(f"expected at least one checkpoint to keep; got keep={keep}; raise it")
        self.folder, self.keep = folder, keep
        self._thread: Thread | None = None
        self._error: BaseException | None = None
        self._damaged: list[Path] = []

    def save(self, step: int, about: Mapping[str, Any], tensors: Mapping[str, Tensor], wait: bool = False) -> None:
        """Copy the tensors and write them under this step, in the background unless `wait`.

        The caller may change the tensors at once. Raises UserError if this write (with `wait`) or the one before failed.
        """
        self.wait()
        host, arrived = copied(tensors)
        self._thread = Thread(
            target=self._write, args=(step, {"step": step, **about}, host, arrived), name="checkpoint"
        )
        self._thread.start()
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until nothing is being written; UserError if it could not be."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if isinstance(error, OSError):
            raise UserError(
                f"expected to write a checkpoint to {self.folder}; got {error}; the one before is whole: make room, or "
                "repair the disk, and go on with --resume"
            ) from error
        if error is not None:
            raise error

    def _write(
        self, step: int, about: dict[str, Any], host: dict[str, Tensor], arrived: torch.cuda.Event | None
    ) -> None:
        try:
            if arrived is not None:
                arrived.synchronize()
            path = self._written(step, about, host)
            whole = [one for one in self.paths() if one not in self._damaged or one == path]
            for old in {*whole[self.keep :], *self._damaged} - {path}:
                self._remove(old)
            self._damaged = []
        except BaseException as error:  # which the next save or wait raises, in the run's own thread
            self._error = error

    def _written(self, step: int, about: dict[str, Any], host: dict[str, Tensor]) -> Path:
        """Write a checkpoint, and give it its name once it is on the disk."""
        text = json.dumps(about)
        path = self.folder / f"checkpoint-{step:08d}.safetensors"
        write_tensors(path, host, {"about": text, "xxh3": checksum(text, host)})
        return path

    def _read(self, path: Path) -> Saved:
        return read_checkpoint(path)

    def _remove(self, path: Path) -> None:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def paths(self) -> list[Path]:
        """The files (or folders, parallel/sharded.py), newest first."""
        numbered = sorted(self.folder.glob("checkpoint-*"), key=_step, reverse=True)
        old = self.folder / OLD
        return [*numbered, old] if old.exists() else numbered

    def latest(self) -> Saved | None:
        """What the newest whole checkpoint says about itself (`step` and what else was given), and its tensors.

        None if there is no checkpoint; UserError if there are some and none is whole.
        """
        problem: UserError | None = None
        for path in self.paths():
            try:
                found = self._read(path)
            except UserError as error:
                problem = problem or error
                self._damaged.append(path)
                continue
            if problem is not None:
                print(f"note: {problem}; going on from {path.name}", file=sys.stderr)
            return found
        if problem is not None:
            raise problem
        return None

    def remove_all(self) -> None:
        """Remove every checkpoint, and what killed writers left half written."""
        self.wait()
        for path in self.paths():
            self._remove(path)
        self.remove_halves()

    def remove_halves(self) -> None:
        """Remove what killed writers left half written; only whoever alone writes here may."""
        present = list(self.folder.iterdir()) if self.folder.exists() else []
        for path in present:
            if is_temporary(path.name):
                self._remove(path)


def _step(path: Path) -> int:
    number = path.stem.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() else -1


def copied(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], torch.cuda.Event | None]:
    """Copies on the host, and the event after which those from CUDA are complete (None: they are)."""
    host, stream = dict[str, Tensor](), None
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        if tensor.device.type == "cuda":
            host[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            host[name].copy_(tensor, non_blocking=True)
            stream = torch.cuda.current_stream(tensor.device)
        else:
            host[name] = tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
    if stream is None:
        return host, None
    arrived = torch.cuda.Event()
    arrived.record(stream)
    return host, arrived


def checksum(about: str, tensors: Mapping[str, Tensor]) -> str:
    """XXH3 over what a checkpoint says about itself, and over names, types, shapes and bytes of its tensors."""
    sum = xxh3_128(about.encode())
    for name, tensor in sorted(tensors.items()):
        sum.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        sum.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sum.hexdigest()


def read_checkpoint(path: Path) -> Saved:
    """A checkpoint of this version, an earlier one or several ranks; UserError unless it is whole."""
    if path.is_dir():
        from ..parallel.sharded import read_sharded

        return read_sharded(path)
    tensors = read_tensors(path, "a training checkpoint")
    try:
        if "about" in tensors:  # earlier versions kept the text as a tensor, and no checksum
            return json.loads(bytes(tensors.pop("about").tolist())), tensors
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
        about, written = metadata["about"], metadata["xxh3"]
        if checksum(about, tensors) == written:
            return json.loads(about), tensors
        problem = "its checksum differs"
    except (KeyError, ValueError, TypeError) as error:
        problem = repr(error)
    raise UserError(f"expected a training checkpoint at {path}; it is damaged ({problem}); use a new --out")
