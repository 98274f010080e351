"""Folders of whole files, on a local disk or behind an fsspec URL (`memory://x`, `s3://bucket/x`, `gs://…`, `sftp://…`).

    folder = open_folder("s3://bucket/activations")
    folder.write_tensors("shard-00000.safetensors", {"a": rows})     # whole or absent
    path = folder.fetch("shard-00000.safetensors")                   # a local path, to map into memory

Local files are written under a temporary name, flushed, renamed, and the folder is flushed, so that a file which was seen
under its name survives a loss of power. Remote ones: remote.py.

Names are those of files directly in the folder: a name from a manifest cannot lead out of it.
"""

from __future__ import annotations

import contextlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import UserError
from ..io import read_json, write_aligned, write_json
from .copies import Copies, limit_from_environment

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(::|://)")
TEMPORARY = ".tmp-"


def is_url(where: str | Path) -> bool:
    """Whether `where` is an fsspec URL rather than a path."""
    return isinstance(where, str) and URL.match(where) is not None


def open_folder(where: str | Path, copies: Copies | None = None) -> Folder:
    """The folder at a path or URL, whether it exists yet or not; `copies` keeps what is downloaded (one for all, if None).

    UserError for a protocol that is unknown, or whose package is not installed.
    """
    if not is_url(where):
        return LocalFolder(Path(where))
    where = str(where)
    if where.startswith(("file://", "local://")):
        return LocalFolder(Path(where.partition("://")[2]))
    from .remote import RemoteFolder

    return RemoteFolder(where, copies or all_copies())


@cache
def all_copies() -> Copies:
    """The copies of this process."""
    return Copies(limit_from_environment())


def safe_name(name: str) -> str:
    """The name of a file directly in a folder; UserError for one that leads elsewhere."""
    if not isinstance(name, str) or name in ("", ".", "..") or any(sign in name for sign in "/\\\0"):
        raise UserError(
            f"expected the name of a file in the folder; got {name!r}; the manifest is damaged, make it anew"
        )
    return name


class Folder(ABC):
    """Files by name in one place. Every write is whole or absent; `name` is what messages call the folder."""

    name: str
    local: Path | None
    room: int | None = None  # bytes of its files that can be at hand at one time, if there is a limit

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Bytes of every file, by name, in order of name; without temporary ones; empty when there is no such folder."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is such a file."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of a file; FileNotFoundError when there is none."""

    @abstractmethod
    def read_json(self, name: str, what: str) -> dict[str, Any]:
        """A JSON object; UserError naming `what` was expected when the file is missing or broken."""

    @abstractmethod
    def write_json(self, name: str, data: Mapping[str, Any]) -> None:
        """Write `data` as indented JSON."""

    @abstractmethod
    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> Path | None:
        """Write a safetensors file; its path if the folder is local. OSError when it could not be written."""

    @abstractmethod
    def fetch(self, name: str) -> Path:
        """A local path of the file: itself, or a copy that may go when others are fetched. OSError when there is none."""

    def keeping(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Within the block what `fetch` gave stays where it is."""
        return contextlib.nullcontext()

    @abstractmethod
    def has_copy(self, name: str) -> bool:
        """Whether `fetch` would give the same bytes as before without reading them from afar."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file if there is one."""

    def names(self) -> list[str]:
        """Names of the files, in order; without temporary ones."""
        return list(self.sizes())

    def at(self, name: str) -> str:
        """How messages call a file of this folder."""
        return f"{self.name.rstrip('/')}/{name}"

    def __str__(self) -> str:
        return self.name


class LocalFolder(Folder):
    """A folder of the local file system; made by the first write."""

    def __init__(self, path: Path):
        self.path = self.local = path
        self.name = str(path)

    def sizes(self) -> dict[str, int]:
        """Bytes of every file."""
        if not self.path.is_dir():
            return {}
        files = [one for one in self.path.iterdir() if one.is_file() and not one.name.startswith(TEMPORARY)]
        return {one.name: one.stat().st_size for one in sorted(files)}

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self.path / safe_name(name)).is_file()

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return (self.path / safe_name(name)).stat().st_size

    def read_json(self, name: str, what: str) -> dict[str, Any]:
        """A JSON object."""
        return read_json(self.path / safe_name(name), what)

    def write_json(self, name: str, data: Mapping[str, Any]) -> None:
        """Write JSON, atomically."""
        write_json(self.path / safe_name(name), data)

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> Path | None:
        """Write a safetensors file, atomically; its path."""
        write_aligned(self.path / safe_name(name), tensors)
        return self.path / name

    def fetch(self, name: str) -> Path:
        """The file itself."""
        return self.path / safe_name(name)

    def has_copy(self, name: str) -> bool:
        """Always: the file is its own copy."""
        return True

    def remove(self, name: str) -> None:
        """Remove a file if there is one."""
        (self.path / safe_name(name)).unlink(missing_ok=True)
