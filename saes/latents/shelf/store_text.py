"""The text of a FeatureStore: its tokens, row by row, and the vocabulary. What is read is checked as it is read."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor

from .shape import damaged


class StoreText:
    """Mapped `tokens`, `positions`, `documents` of `rows` rows; windows of `before` and `after` tokens around one."""

    def __init__(self, folder: Path, arrays: dict[str, Tensor], before: int, after: int):
        self.folder, self.arrays, self.before, self.after = folder, arrays, before, after
        self.rows = len(arrays["tokens"])
        self._tokens, self._positions = arrays["tokens"].numpy(), arrays["positions"].numpy()
        self._documents = arrays["documents"].numpy()

    @cached_property
    def vocabulary(self) -> list[str]:
        """The string of every token id."""
        data, ends = self.arrays["vocab_bytes"].numpy().tobytes(), self.arrays["vocab_ends"].tolist()
        starts = [0, *ends[:-1]]
        if not all(0 <= start <= end <= len(data) for start, end in zip(starts, ends, strict=True)):
            raise damaged(self.folder, "the vocabulary")
        try:
            return [data[start:end].decode("utf-8", "surrogatepass") for start, end in zip(starts, ends, strict=True)]
        except UnicodeDecodeError as error:
            raise damaged(self.folder, f"the vocabulary: {error}") from error

    def token(self, token: int) -> str:
        """The string of one token id."""
        if not 0 <= token < len(self.vocabulary):
            raise damaged(self.folder, f"token {token}")
        return self.vocabulary[token]

    def strings(self, start: int, stop: int) -> list[str]:
        """The tokens of some rows."""
        return [self.token(token) for token in self._tokens[start:stop].tolist()]

    def place(self, row: int) -> tuple[int, int]:
        """Document and position of a row."""
        return int(self._documents[row]), int(self._positions[row])

    def window(self, row: int) -> tuple[int, int]:
        """The rows of its block shown with `row`: the first, and the one after the last."""
        if not 0 <= row < self.rows:
            raise damaged(self.folder, f"row {row}")
        position = int(self._positions[row])
        if not 0 <= position <= row:
            raise damaged(self.folder, f"position {position} of row {row}")
        later = self._positions[row + 1 : row + 1 + self.after]
        begins = np.flatnonzero(later <= 0)
        return row - min(self.before, position), row + 1 + (int(begins[0]) if len(begins) else len(later))
