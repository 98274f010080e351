"""What every form of the registry is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .build import Given
from .files import ENDINGS, names_in

if TYPE_CHECKING:
    from ..dictionary import Dictionary


class Look(NamedTuple):
    """What a path shows from outside: the files of a folder, or the tensors of a file."""

    path: Path
    files: frozenset[str]
    names: frozenset[str]

    def names_of(self, file: str) -> frozenset[str]:
        """The tensors of one file of the folder."""
        return names_in(self.path / file) if file in self.files else frozenset()


def look(path: Path) -> Look:
    """See what is there; nothing is read but names."""
    if path.is_dir():
        return Look(path, frozenset(entry.name for entry in path.iterdir()), frozenset())
    return Look(path, frozenset(), names_in(path) if path.suffix in ENDINGS else frozenset())


@dataclass(frozen=True)
class Format:
    """One form: its name, what it is by, whether a path holds it, how to read it, and how to write it where that is possible."""

    name: str
    about: str
    holds: Callable[[Look], bool]
    load: Callable[[Path, Given], Dictionary]
    save: Callable[[Dictionary, Path], None] | None = None
