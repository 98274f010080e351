"""A folder that remembers the finished rows of a trace, so that an interrupted one goes on.

    trace.json               what is traced: prompt, model, dictionaries, targets, settings
    rows-00000.safetensors   a batch of sparse rows and their digest, whole or absent

Rows are known by their node, which model, prompt and settings determine; a smaller `memory_mib` cuts the rest into other batches
and changes nothing else. The folder is removed when all rows are there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...saes.errors import UserError
from ...saes.io import is_temporary, read_json, read_tensors, write_json, write_tensors
from .edges import Piece
from .record import Targets

FREE = ("memory_mib",)  # settings that may differ when a trace goes on


class Partial:
    """Finished pieces of one trace; remembers nothing when it has no folder."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self._count = 0

    def pieces(self) -> list[Piece]:
        """What an interrupted trace left; damaged files are dropped and their rows done again."""
        found = []
        for path in sorted(self.folder.glob("rows-*.safetensors")) if self.folder else ():
            self._count = max(self._count, int(path.stem.removeprefix("rows-")) + 1)
            try:
                tensors = read_tensors(path, "finished rows")
                piece, digest = Piece(**{name: tensors[name] for name in Piece._fields}), tensors["digest"]
            except (UserError, KeyError):
                piece, digest = None, None
            if piece is None or digest is None or not torch.equal(_digest(piece), digest):
                path.unlink()
            else:
                found.append(piece)
        return found

    def unfinished(self, targets: list[Targets], pieces: list[Piece]) -> list[Targets]:
        """The rows that no piece has."""
        done = torch.cat([piece.node for piece in pieces]) if pieces else torch.empty(0, dtype=torch.int64)
        left = []
        for each in targets:
            open_rows = ~torch.isin(each.nodes, done)
            if bool(open_rows.all()):
                left.append(each)
            elif bool(open_rows.any()):
                left.append(each.only(open_rows.nonzero()[:, 0]))
        return left

    def keep(self, piece: Piece) -> Piece:
        """Write a piece, if there is a folder."""
        if self.folder is not None:
            tensors = {**piece._asdict(), "digest": _digest(piece)}
            write_tensors(self.folder / f"rows-{self._count:05d}.safetensors", tensors)
            self._count += 1
        return piece


def _digest(piece: Piece) -> Tensor:
    """BLAKE2b of types, shapes and bytes, as a tensor of bytes: a safetensors file with a flipped bit still opens."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in piece:
        digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


@contextmanager
def remembering(folder: str | Path | None, metadata: dict[str, Any]) -> Iterator[Partial]:
    """A Partial for this trace; UserError when the folder is another trace's. Removed at the end, kept on errors."""
    if folder is None:
        yield Partial(None)
        return
    path = Path(folder)
    wanted = json.loads(json.dumps(_identity(metadata)))
    if (path / "trace.json").exists():
        if read_json(path / "trace.json", "the notes of an interrupted trace") != wanted:
            raise UserError(
                f"expected the unfinished rows of this trace in {path}; they are another one's; remove the folder"
            )
    elif path.exists() and not (path.is_dir() and all(is_temporary(each.name) for each in path.iterdir())):
        raise UserError(f"expected an empty folder, or an interrupted trace's, at {path}; name another one")
    else:
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / "trace.json", wanted)
    yield Partial(path)
    shutil.rmtree(path)


def _identity(metadata: dict[str, Any]) -> dict[str, Any]:
    settings = {name: value for name, value in metadata["settings"].items() if name not in FREE}
    return {**metadata, "settings": settings}
