"""Running text: where a string occurs in a store's tokens, and which examples' windows hold it.

The tokens' strings, case-folded one by one (folding does not depend on what stands beside a character), are put end to end
as bytes; UTF-8 can be searched as bytes without false hits, so an occurrence may begin and end anywhere in a token and span
any number of them. All occurrences count, overlapping ones too. One that begins in row f and ends in row l, both of one block,
lies in the windows of the examples at

    max(l − after, start of the block)  ≤  row  ≤  min(f + before, end of the block)

which are neighbours once the examples are sorted by row. A character that the tokenizer split over several tokens cannot be
found: its parts have no strings of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError

LARGEST = 2**31 - 1  # bytes of text; more would need wider numbers
WORD = 8

Integers = NDArray[np.int32]


class RunningText:
    """The text of a store, ready to be searched. Memory: its bytes and 4 more a token."""

    def __init__(self, tokens: Integers, folded: Sequence[str]):
        self.tokens, self.folded = tokens, folded
        strings = [text.encode("utf-8", "surrogatepass") for text in folded]
        lengths = np.array([len(text) for text in strings], np.int64)[tokens]
        if lengths.sum() > LARGEST:
            raise UserError(
                f"expected text of at most {LARGEST:,} bytes to search; got {lengths.sum():,}; search tokens"
            )
        self.ends = lengths.cumsum().astype(np.int32)
        self.bytes = np.frombuffer(b"".join([strings[token] for token in tokens.tolist()]), np.uint8)
        self.frequency = np.bincount(self.bytes, minlength=256)

    def find(self, folded: str) -> tuple[Integers, Integers]:
        """The rows in which occurrences begin and end, each pair once, in order; `folded` is case-folded and not empty."""
        if len(folded) == 1:
            rows = np.flatnonzero(np.array([folded in token for token in self.folded])[self.tokens]).astype(np.int32)
            return rows, rows
        needle = folded.encode("utf-8", "surrogatepass")
        starts = occurrences(self.bytes, needle, self.frequency)
        first, last = (np.searchsorted(self.ends, starts + by, "right").astype(np.int32) for by in (0, len(needle) - 1))
        new = np.ones(len(first), np.bool_)
        new[1:] = (np.diff(first) > 0) | (np.diff(last) > 0)
        return first[new], last[new]


class ExampleRows:
    """The examples of all latents `[latent example]` (row -1: none), sorted by row. Memory: 4 bytes each and 8 a row."""

    def __init__(self, rows: NDArray[Any], positions: Integers, before: int, after: int):
        self.before, self.after = before, after
        self.positions = positions
        block_starts = np.append(np.flatnonzero(positions == 0), len(positions))
        lengths = np.diff(block_starts, prepend=0)
        self.block_ends = np.repeat(block_starts, lengths).astype(np.int32)
        self.order = rows.ravel().argsort(kind="stable").astype(np.int32)
        counts = np.bincount(rows.ravel() + 1, minlength=len(positions) + 1)
        self.places = counts.cumsum().astype(np.int32)  # of each row, in `order`; rows of -1 come first

    def holding(self, first: Integers, last: Integers) -> Integers:
        """The examples (latent x examples + example) whose windows hold an occurrence; `first`, `last` are what `find` gave."""
        starts = first - self.positions[first]
        low = np.maximum(last - self.after, starts)
        high = np.minimum(first + self.before + 1, self.block_ends[first])
        within = (last < self.block_ends[first]) & (low < high)
        begin, end = self.places[low[within]], self.places[high[within]]
        return self.order[union(begin, end)]


def union(begin: Integers, end: Integers) -> NDArray[np.int64]:
    """The whole numbers in any of the ranges [begin, end); both ascend."""
    if not len(begin):
        return np.empty(0, np.int64)
    begin = np.maximum(begin, np.append(0, end[:-1]))  # what the ranges before have is theirs
    sizes = np.maximum(end - begin, 0).astype(np.int64)
    before = sizes.cumsum() - sizes
    return np.arange(sizes.sum()) + np.repeat(begin - before, sizes)


def occurrences(text: NDArray[np.uint8], needle: bytes, frequency: NDArray[Any]) -> NDArray[np.int64]:
    """Where `needle` begins in `text`: candidates at its rarest byte, then eight bytes at a time."""
    wanted = np.frombuffer(needle, np.uint8)
    room = len(text) - len(wanted) + 1
    if room <= 0:
        return np.empty(0, np.int64)
    rarest = int(frequency[wanted].argmin())
    places = np.flatnonzero(text[rarest : rarest + room] == wanted[rarest])
    if len(wanted) < WORD:
        for offset in range(len(wanted)):
            places = places[text[places + offset] == wanted[offset]]
        return places
    words = np.ndarray((len(text) - WORD + 1,), np.uint64, text, strides=(1,))
    offsets = [*range(0, len(wanted) - WORD, WORD), len(wanted) - WORD]
    for offset in [*offsets[::32], *offsets]:  # far apart first, which ends runs of one letter early
        places = places[words[places + offset] == np.frombuffer(needle, np.uint64, 1, offset)[0]]
    return places
