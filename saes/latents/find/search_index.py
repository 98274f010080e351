"""What searching a store needs, made at first use and kept as long as the store is open: folded strings, running text, labels."""

from __future__ import annotations

import threading
import weakref
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ...io import map_tensors
from ..said.mark import Mark
from .running_text import ExampleRows, RunningText

if TYPE_CHECKING:
    from ..shelf.store import FeatureStore


class Said(NamedTuple):
    """A latent's label, tags and note, case-folded; `all` is everything in one string."""

    label: str
    tags: tuple[str, ...]
    note: str
    is_starred: bool
    all: str


class Index:
    """The searchable side of one store. It holds the store's files, not the store."""

    def __init__(self, store: FeatureStore):
        self.lock = threading.RLock()
        self.folder, self.before, self.after = store.folder, store.manifest["before"], store.manifest["after"]
        self.latents, self.vocabulary, self.labels = len(store), store.vocabulary, store.labels
        try:
            self.arrays = map_tensors(self.folder / "features.safetensors")
            self.text = map_tensors(self.folder / "tokens.safetensors")
        except (OSError, ValueError) as error:
            raise UserError(
                f"expected the files of a FeatureStore in {self.folder}; {error}; collect it anew"
            ) from error
        self._marks: dict[int, Mark] = {}
        self._said: dict[int, Said] = {}

    def array(self, name: str, below: int | None = None) -> NDArray[Any] | None:
        """A per-latent array, None where the store has none; its numbers are checked to be in [-1, below)."""
        if name not in self.arrays:
            return None
        with self.lock:
            if (name, below) not in self._checked:
                found: NDArray[Any] = self.arrays[name].numpy()
                if below is not None and found.size and not -1 <= found.min() <= found.max() < below:
                    raise UserError(f"expected {name} below {below} in {self.folder}; got others; collect it anew")
                self._checked[name, below] = found
            return self._checked[name, below]

    @cached_property
    def _checked(self) -> dict[tuple[str, int | None], NDArray[Any]]:
        return {}

    @cached_property
    def tokens(self) -> NDArray[np.int32]:
        """The token of every row."""
        tokens: NDArray[np.int32] = self.text["tokens"].numpy()
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < len(self.vocabulary):
            raise UserError(f"expected tokens of the vocabulary in {self.folder}; got others; collect it anew")
        return tokens

    @cached_property
    def folded(self) -> list[str]:
        """The vocabulary, case-folded."""
        return [token.casefold() for token in self.vocabulary]

    @cached_property
    def ids(self) -> dict[str, list[int]]:
        """The ids of each string of the vocabulary."""
        ids: dict[str, list[int]] = {}
        for number, token in enumerate(self.vocabulary):
            ids.setdefault(token, []).append(number)
        return ids

    @cached_property
    def running(self) -> RunningText:
        """The text of all rows."""
        return RunningText(self.tokens, self.folded)

    @cached_property
    def examples(self) -> ExampleRows:
        """Where the top examples of all latents stand in the text."""
        positions: NDArray[np.int32] = self.text["positions"].numpy()
        if len(positions) != len(self.tokens) or (positions < 0).any() or (positions > np.arange(len(positions))).any():
            raise UserError(f"expected a position for every token in {self.folder}; got others; collect it anew")
        return ExampleRows(self.example_rows, positions, self.before, self.after)

    @cached_property
    def example_rows(self) -> NDArray[Any]:
        """The row of every top example, -1 where there is none, `[latent example]`."""
        rows = self.array("example_rows", len(self.tokens))
        if rows is None:
            raise UserError(f"expected example_rows in {self.folder}; got a store without; collect it anew")
        return rows

    def said(self) -> dict[int, Said]:
        """What people said of latents, as it stands now; only what changed is folded anew."""
        with self.lock:
            marks = self.labels.all()
            for latent, mark in marks.items():
                if self._marks.get(latent) is not mark:
                    self._said[latent] = _fold(mark)
            for latent in self._marks.keys() - marks.keys():
                del self._said[latent]
            self._marks = marks
            return self._said


def _fold(mark: Mark) -> Said:
    label, note, tags = (mark.label or "").casefold(), mark.note.casefold(), tuple(tag.casefold() for tag in mark.tags)
    return Said(label, tags, note, mark.is_starred, "\n".join([label, *tags, note]))


_indexes: weakref.WeakKeyDictionary[FeatureStore, Index] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def index_of(store: FeatureStore) -> Index:
    """The index of a store, made once."""
    with _lock:
        if store not in _indexes:
            _indexes[store] = Index(store)
        return _indexes[store]
