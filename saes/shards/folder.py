"""Shards: cached activations of one or more sites, row by row, with the token each row belongs to.

A folder, local or behind an fsspec URL, with `manifest.json` and `shard-00000.safetensors` …; each shard holds one tensor
per site `[row d]` and `tokens`, `positions`, `documents` `[row]` (int32). Rows lie in text order and a block is never
split over two shards. A shard is written whole, then the manifest is; so a killed run loses at most the shard it was
writing, and `finished` in the manifest says whether the run came to its end.

Reading is memory-mapped. The size of every shard is compared with the manifest when the folder is opened, its checksum
when the shard is first touched (files.py). Keys of the manifest are in docs/formats.md.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float32, Int, Shaped
from torch import Tensor

from ..drawn import drawn
from ..errors import UserError
from ..keep import row_norms
from .batches import Batch, Extent, read_batches
from .files import COLUMNS, ShardFiles
from .manifest import FORMAT, VERSION, norm_column, open_manifest, stored_dtype
from .order import RowOrder
from .quantise import restored
from .storage import Folder, open_folder

__all__ = ["FORMAT", "VERSION", "Batch", "Shards", "SiteRows"]

CHUNK = 16_384  # rows whose norms are computed at a time
Rows = Int[Tensor, "row"] | Bool[Tensor, "row"]


@dataclasses.dataclass(frozen=True)
class SiteRows:
    """The rows of one site over all shards: `rows[10:20]` or `rows[index_tensor]` reads just those from the disk."""

    shards: Shards
    site: str

    def __len__(self) -> int:
        return len(self.shards)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and width."""
        return len(self.shards), self.shards.width(self.site)

    def __getitem__(self, rows: int | slice | Rows) -> Shaped[Tensor, "..."]:
        return self.shards.read([self.site], rows)[self.site]


class Shards:
    """An opened Shards folder: `len(shards)` rows, `shards[site]` rows on demand, `shards.batches(4096, seed=0)`."""

    def __init__(self, storage: Folder, manifest: dict[str, Any]):
        self.storage, self.manifest = storage, manifest
        self._files = ShardFiles(storage, manifest)
        self._places = self._files.places
        self._count = int(self._places.starts[-1])

    @staticmethod
    def open(folder: str | Path, unfinished: bool = False) -> Shards:
        """Open a finished folder (or, with `unfinished`, what a stopped run left), by path or URL; UserError when it is
        damaged.
        """
        storage = open_folder(folder)
        return Shards(storage, open_manifest(storage, unfinished))

    @property
    def folder(self) -> Path | str:
        """Where the folder is: its path, or its URL."""
        return self.storage.local or self.storage.name

    @property
    def sites(self) -> list[str]:
        """Names of the cached sites."""
        return [site["name"] for site in self.manifest["sites"]]

    def width(self, site: str) -> int:
        """Number of dimensions of one site."""
        for entry in self.manifest["sites"]:
            if entry["name"] == site:
                return entry["width"]
        raise UserError(f"expected a cached site ({', '.join(self.sites)}); got {site!r}; choose one or cache it too")

    @property
    def fingerprint(self) -> str:
        """Names this content: the hash of its shards' checksums."""
        return self.manifest["fingerprint"]

    @property
    def dtype(self) -> torch.dtype:
        """What activations are read in: the stored type, float32 where that is int8."""
        stored = stored_dtype(self.manifest)
        return torch.float32 if stored == torch.int8 else stored

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, site: str) -> SiteRows:
        self.width(site)
        return SiteRows(self, site)

    _repr_html_ = drawn

    def __repr__(self) -> str:
        widths = ", ".join(f"{site['name']} [{len(self):,} {site['width']}]" for site in self.manifest["sites"])
        return f"Shards({self.folder}: {self.manifest['model']['name']}, {widths}, {self.manifest['dtype']})"

    @cached_property
    def tokens(self) -> Int[Tensor, "row"]:
        """Token id of every row."""
        return self._column("tokens").long()

    @cached_property
    def positions(self) -> Int[Tensor, "row"]:
        """Position of every row within its block; 0 is the BOS."""
        return self._column("positions").long()

    @cached_property
    def documents(self) -> Int[Tensor, "row"]:
        """Document number of every row."""
        return self._column("documents").long()

    def norms(self, site: str) -> Float32[Tensor, "row"]:
        """Euclidean norm of every row as it was captured; of what is stored, where the folder does not hold them."""
        self.width(site)
        name = norm_column(self.manifest, site)
        if name and all(name in self._files.tensors(number) for number in range(len(self._files))):
            return self._column(name)
        chunks = (slice(start, start + CHUNK) for start in range(0, len(self), CHUNK))
        return torch.cat([row_norms(self.read([site], chunk)[site]).float() for chunk in chunks])

    def _column(self, name: str) -> Shaped[Tensor, "row"]:
        return torch.cat([self._files.tensors(number)[name] for number in range(len(self._files))])

    def read(self, sites: list[str], rows: int | slice | Rows) -> dict[str, Tensor]:
        """The chosen rows of several sites, in `dtype`; UserError for a row outside the folder."""
        chosen = _index(rows, len(self))
        return self._sites(sites, self._values(self._tensors_of(sites), chosen), self._is_view(chosen))

    def _batch(self, sites: list[str], rows: slice | Int[Tensor, "row"], with_columns: bool = True) -> Batch:
        """The chosen rows, which must be within bounds, and what token each is (else empty columns)."""
        columns = COLUMNS if with_columns else ()
        values = self._values([*self._tensors_of(sites), *columns], rows)
        activations = self._sites(sites, values, self._is_view(rows))
        none = torch.empty(0, dtype=torch.int64)
        return Batch(activations, *(values[name].long() if with_columns else none for name in COLUMNS))

    def _tensors_of(self, sites: list[str]) -> list[str]:
        """Names of the tensors that these sites are stored in."""
        for site in sites:
            self.width(site)
        is_int8 = stored_dtype(self.manifest) == torch.int8
        return [*sites, *(f"{site}.scale" for site in sites if is_int8)]

    def _sites(self, sites: list[str], values: dict[str, Tensor], are_views: bool) -> dict[str, Tensor]:
        """The activations that the stored values stand for, never a view of a file."""
        if stored_dtype(self.manifest) == torch.int8:
            return {site: restored(values[site], values[f"{site}.scale"]) for site in sites}
        return {site: values[site].clone() if are_views else values[site] for site in sites}

    def _values(self, names: list[str], rows: slice | Int[Tensor, "row"]) -> dict[str, Tensor]:
        """The chosen rows of the tensors of these names; of a slice, views of the file where it lies in one shard."""
        if isinstance(rows, Tensor) and len(rows):
            return self._files.rows(names, rows)
        rows = rows if isinstance(rows, slice) else slice(0, 0)
        numbers = self._places.overlapping(rows.start, rows.stop) or [0]
        pieces = [self._piece(number, names, rows) for number in numbers]
        if len(pieces) == 1:
            return dict(zip(names, pieces[0], strict=True))
        return {name: torch.cat(several) for name, *several in zip(names, *pieces, strict=True)}

    def _is_view(self, rows: slice | Tensor) -> bool:
        """Whether `_values` of these rows are views of a file."""
        return isinstance(rows, slice) and len(self._places.overlapping(rows.start, rows.stop)) == 1

    def _piece(self, number: int, names: list[str], rows: slice) -> list[Tensor]:
        tensors, start = self._files.tensors(number), self._places.first(number)
        return [tensors[name][max(0, rows.start - start) : max(0, rows.stop - start)] for name in names]

    def batches(
        self,
        batch: int,
        seed: int | None = 0,
        sites: list[str] | None = None,
        rows: Rows | None = None,
        start: int = 0,
        epochs: int = 1,
        only_whole: bool = False,
        *,
        window: int = 0,
        part: tuple[int, int] = (0, 1),
        ahead: int = 2,
        columns: bool = True,
    ) -> Iterator[Batch]:
        """Batches over `rows` (default all), in an order drawn anew for each epoch from `seed` (None: in text order).

        The order is a uniform permutation of all rows of an epoch, not what a buffer makes of text order. With
        `window` = n > 0 it is one within each window: the shards are put in a random order and taken n at a time, and all
        orders of the rows of a window are equally likely, so two of them are neighbours as often as any other two; rows
        of different windows are not mixed. It does not depend on `batch` or `ahead`. The default, all rows, wants every
        shard at hand at all times; a window wants n, and is what a folder needs that is larger than memory or far away.

        The last batch of an epoch may be smaller; nothing is dropped, unless `only_whole`, which leaves the smaller batch
        out where there is a whole one. `start` skips that many batches without reading them: the order of the rest is what
        it would have been. `part` (r, D) gives the rows r*b//D to (r+1)*b//D of each batch of b rows: joined over r they
        are the batch. `ahead` batches are read in advance, in a thread that ends with the iterator (0: none). Without
        `columns` tokens, positions and documents are not read, and are empty.
        """
        index = None if rows is None else _numbers(torch.as_tensor(rows), len(self))
        order = RowOrder(self._places.starts, index, seed, window)
        prepare = self._prepare if self._has_room(1 if seed is None else window) else None
        read = functools.partial(self._batch, sites or self.sites, with_columns=columns)
        return read_batches(read, prepare, order, Extent(batch, start, epochs, only_whole, part), ahead)

    def _prepare(self, start: int, stop: int) -> None:
        """Fetch, check and read ahead the shards of the rows from `start` to `stop`."""
        for number in self._places.overlapping(start, stop):
            self._files.prepare(number)

    def _has_room(self, window: int) -> bool:
        """Whether the shards of two windows (0: all shards) can be at hand; UserError unless those of one can."""
        return self._files.check_room(window or len(self._files))


def _index(rows: int | slice | Rows, count: int) -> slice | Int[Tensor, "chosen"]:
    """Rows as an index, or as a slice where they follow one another; UserError for one outside of `count`."""
    if isinstance(rows, slice):
        every = range(*rows.indices(count))
        return slice(every.start, max(every.start, every.stop)) if every.step == 1 else torch.tensor(every)
    return _numbers(torch.as_tensor(rows), count)


def _numbers(rows: Tensor, count: int) -> Int[Tensor, "chosen"]:
    """An index or a mask as an index."""
    index = rows.nonzero().squeeze(1) if rows.dtype == torch.bool else rows.to(torch.int64).reshape(-1)
    if len(index) and not (0 <= int(index.min()) and int(index.max()) < count):
        raise UserError(f"expected rows in [0, {count}); got {int(index.min())} to {int(index.max())}")
    return index
