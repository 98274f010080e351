"""Codebook: the kept codes of a text, memory-mapped, looked up by latent or by row.

Opening reads one number per latent. What is looked up is checked as it is read (places within the file and in order, rows and
latents in range, values above 0), so that a damaged file gives an error and never another answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...codes import Codes
from ...errors import UserError
from .codes_file import BY_LATENT, BY_ROW, RECORD, map_codes, read_record

if TYPE_CHECKING:
    from ..shelf.store import FeatureStore


class Firings(NamedTuple):
    """Where one latent fires: rows, ascending, and its values there."""

    rows: Int[Tensor, "firing"]
    values: Float[Tensor, "firing"]


class Slots(NamedTuple):
    """The codes of some rows end to end: which of the rows (by its place in the list), which latent, its value."""

    place: Int[Tensor, "slot"]
    latents: Int[Tensor, "slot"]
    values: Float[Tensor, "slot"]


class Codebook:
    """The codes of `rows` rows by `latents` latents; `count`, `sum` and `sum_squares` are of each latent's values."""

    def __init__(self, folder: Path, latents: int, rows: int, slots: int):
        self.folder, self.latents, self.rows, self.slots = folder, latents, rows, slots
        self._by_row, self._by_latent = map_codes(folder / BY_ROW), map_codes(folder / BY_LATENT)
        lengths = {"starts": rows + 1, "latents": slots, "values": slots}
        self._expect(BY_ROW, {name: len(part) for name, part in self._by_row.items()} == lengths)
        lengths = {"starts": latents + 1, "sum": latents, "sum_squares": latents, "rows": slots, "values": slots}
        self._expect(BY_LATENT, {name: len(part) for name, part in self._by_latent.items()} == lengths)
        starts = self._by_latent["starts"]
        self.count: Int[Tensor, "latent"] = starts.diff()
        self._expect(BY_LATENT, int(starts[0]) == 0 and int(starts[-1]) == slots and bool((self.count >= 0).all()))
        self.sum: Float[Tensor, "latent"] = self._by_latent["sum"]
        self.sum_squares: Float[Tensor, "latent"] = self._by_latent["sum_squares"]

    @staticmethod
    def open(folder: str | Path) -> Codebook | None:
        """The codes kept in the store at `folder`, None where none were kept; UserError if they are damaged."""
        folder = Path(folder)
        if not (folder / RECORD).exists():
            return None
        record = read_record(folder)
        is_there = [(folder / name).exists() for name in (BY_ROW, BY_LATENT)]
        if not (record["kept"] and record["finished"] and any(is_there)):
            return None
        return Codebook(folder, record["latents"], record["rows"], record["slots"])

    def __repr__(self) -> str:
        return f"Codebook({self.folder}: {self.slots:,} slots of {self.latents:,} latents on {self.rows:,} rows)"

    def firings(self, latent: int) -> Firings:
        """Rows (int64, ascending) on which `latent` fires, and its values (float32)."""
        if not 0 <= latent < self.latents:
            raise IndexError(f"expected a latent in [0, {self.latents}); got {latent}")
        return Firings(*self.firings_of(latent, latent + 1)[1:])

    def firings_of(self, first: int, last: int) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, rows and values of all firings of the latents `first` to `last` (left out), by latent, then row."""
        if not 0 <= first <= last <= self.latents:
            raise IndexError(f"expected latents within [0, {self.latents}); got {first} to {last}")
        low, high = (int(self._by_latent["starts"][latent]) for latent in (first, last))
        latents = torch.repeat_interleave(self.count[first:last]) + first
        rows, values = self._by_latent["rows"][low:high].long(), self._by_latent["values"][low:high].clone()
        self._check_firings(latents, rows, values)
        return latents, rows, values

    def _check_firings(self, latents: Tensor, rows: Tensor, values: Tensor) -> None:
        in_range = not len(rows) or (int(rows.min()) >= 0 and int(rows.max()) < self.rows)
        in_order = bool(((rows.diff() > 0) | (latents.diff() > 0)).all())
        self._expect(BY_LATENT, in_range and in_order and bool((values > 0).all()))

    def values(self, latent: int, first: int, last: int) -> Float[Tensor, "row"]:
        """The values of `latent` on the rows `first` to `last` (left out), 0 where it is silent."""
        rows, values = self.firings(latent)
        begin, end = torch.searchsorted(rows, torch.tensor([first, last])).tolist()
        out = torch.zeros(max(last - first, 0))
        out[rows[begin:end] - first] = values[begin:end]
        return out

    def slots_of(self, rows: Int[Tensor, "row"]) -> Slots:
        """The codes of `rows`, end to end, in the order in which they were written."""
        if len(rows) and not (int(rows.min()) >= 0 and int(rows.max()) < self.rows):
            raise IndexError(f"expected rows in [0, {self.rows}); got {int(rows.min())}..{int(rows.max())}")
        low, high = self._by_row["starts"][rows], self._by_row["starts"][rows + 1]
        count = high - low
        self._expect(BY_ROW, bool(((low >= 0) & (count >= 0) & (high <= self.slots)).all()))
        place = torch.repeat_interleave(count)
        slot = torch.arange(len(place)) + (low - count.cumsum(0) + count)[place]
        latents, values = self._by_row["latents"][slot], self._by_row["values"][slot]
        is_whole = not len(latents) or (int(latents.min()) >= 0 and int(latents.max()) < self.latents)
        self._expect(BY_ROW, is_whole and bool((values > 0).all()))
        return Slots(place, latents, values)

    def at(self, rows: Int[Tensor, "row"]) -> Codes:
        """The codes of `rows`, padded to the longest of them."""
        place, latents, values = self.slots_of(rows)
        count = torch.bincount(place, minlength=len(rows))
        column = torch.arange(len(place)) - (count.cumsum(0) - count)[place]
        width = int(count.max()) if len(rows) else 0
        out = Codes(torch.zeros(len(rows), width), torch.zeros(len(rows), width, dtype=torch.int64))
        out.values[place, column] = values
        out.indices[place, column] = latents.long()
        return out

    def _expect(self, file: str, is_whole: bool) -> None:
        if not is_whole:
            raise UserError(
                f"expected whole codes in {self.folder / file}; its numbers do not fit together; collect them anew"
            )


def codes_of(store: FeatureStore, latent: int | None = None) -> Codebook:
    """The codes of a store; UserError if none were kept, or if they are not its own (by size, and by count of `latent`)."""
    book = store.codebook
    if book is None:
        raise UserError(
            f"expected the codes in {store.folder}; none were kept; collect it with a larger limit for codes"
        )
    is_own = (book.latents, book.rows) == (len(store), len(store.tokens))
    if latent is not None and not 0 <= latent < len(store):
        raise IndexError(f"expected a latent in [0, {len(store)}); got {latent}")
    if not is_own or (latent is not None and int(book.count[latent]) != int(store.count[latent])):
        raise UserError(f"expected the codes of the store in {store.folder}; got those of another; collect it anew")
    return book
