"""The files of a Shards folder, checked and mapped when they are first touched, and rows gathered from many of them.

A shard's checksum (xxh3, where the manifest has one, else SHA-256) is taken of the very bytes that are then read: the file
is mapped once, and its size, checksum, names, shapes and types are compared with the manifest before a row leaves it.

Rows that lie in many shards are gathered by one call. All shards are mapped into one address space; a tensor of bytes that
spans the lowest to the highest mapping is seen as one row for each byte, row i being the bytes from i on (overlapping:
stride 1), and `index_select` takes those that begin where the wanted rows begin. It costs what a gather from a single
tensor costs; one call for each shard took 1.5 to 8 times as long (8 to 512 shards).
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from ..errors import UserError
from ..io import map_file, tensors_in
from .manifest import norm_column, stored_dtype
from .places import RowPlaces
from .storage import Folder

COLUMNS = ("tokens", "positions", "documents")
WORD = 8  # bytes of the largest number in a file
FETCHES = 4  # shards that are made ready at the same time


class Opened(NamedTuple):
    """One shard: its bytes and the tensors in them."""

    data: Tensor
    tensors: dict[str, Tensor]


class View(NamedTuple):
    """The tensors of one name in all open shards, as one: row r of shard s is at `base[s] + stride * r` of `memory`."""

    memory: Tensor
    base: Int[Tensor, "shard"]
    stride: int
    like: Tensor

    def rows(self, rows: Int[Tensor, "row"], owner: Int[Tensor, "row"]) -> Shaped[Tensor, "row ..."]:
        """Rows by their number in the folder, a copy; `owner` is the shard of each."""
        found = self.memory.index_select(0, self.base.index_select(0, owner).add_(rows, alpha=self.stride))
        return found.view(self.like.dtype).view(len(rows), *self.like.shape[1:])


class Table(NamedTuple):
    """Views of all that is open. Holds the shards, so that no address outlives its mapping."""

    shards: dict[int, Opened]
    views: dict[str, View]


class ShardFiles:
    """The shards that a manifest lists, by number. May be used from several threads."""

    def __init__(self, folder: Folder, manifest: dict[str, Any]):
        self.folder, self._manifest = folder, manifest
        self._entries = manifest["shards"]
        self.places = RowPlaces([entry["rows"] for entry in self._entries])
        self._open: dict[int, Opened] = {}
        self._is_open = torch.zeros(len(self._entries), dtype=torch.bool)
        self._table: Table | None = None
        self._lock = threading.Lock()
        self._busy = [threading.Lock() for _ in self._entries]

    def __len__(self) -> int:
        return len(self._entries)

    def tensors(self, number: int) -> dict[str, Tensor]:
        """The tensors of one shard, by name; UserError when it is missing or damaged."""
        return self._opened(number).tensors

    def rows(self, names: list[str], rows: Int[Tensor, "row"]) -> dict[str, Shaped[Tensor, "row ..."]]:
        """Rows by their number in the folder, in their order, of the tensors of these names; they must be within bounds."""
        owner = self.places.owners(rows)
        table = self._ready(owner)  # to be held until all is copied: only it keeps the memory mapped
        return {name: table.views[name].rows(rows, owner) for name in names}

    def open(self, numbers: list[int]) -> list[Opened]:
        """These shards, fetched and checked several at a time; UserError for the first that is missing or damaged."""
        if len(numbers) < 2:
            return [self._opened(number) for number in numbers]
        with ThreadPoolExecutor(FETCHES, "unweave-shards") as pool:
            return list(pool.map(self._opened, numbers))

    def prepare(self, number: int) -> None:
        """Fetch, check and read ahead one shard that will be wanted. What is wrong with it is said when it is read."""
        with contextlib.suppress(UserError, OSError):
            self._opened(number)
            if self.folder.local is None:
                return  # its copy was only just written
            handle = os.open(self.folder.fetch(self._entries[number]["file"]), os.O_RDONLY)
            try:
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(handle)

    def check_room(self, count: int) -> bool:
        """Whether twice `count` shards fit in the room for copies; UserError when not even `count` do."""
        room = self.folder.room
        largest = sorted((entry["bytes"] for entry in self._entries), reverse=True)
        if room is not None and sum(largest[:count]) > room:
            raise UserError(
                f"expected {self.folder} read by windows of shards that fit in the room for copies, {room / 2**30:.3g} GiB; "
                f"got {'all shards at once' if count >= len(largest) else f'windows of {count}'}, "
                f"{sum(largest[:count]) / 2**30:.3g} GiB; give a smaller window, raise UNWEAVE_COPIES_GIB, or copy the folder"
            )
        return room is None or sum(largest[: 2 * count]) <= room

    def _ready(self, owner: Int[Tensor, "row"]) -> Table:
        """All that is open, once the shards `owner` are."""
        table = self._table
        if table is not None and self.folder.local is not None and len(table.shards) == len(self):
            return table
        wanted = torch.bincount(owner, minlength=len(self)) > 0
        if self.folder.local is not None:
            wanted &= ~self._is_open
        # Of a remote folder all are asked for, so that their copies count as used.
        numbers = wanted.nonzero().squeeze(1).tolist()
        held = dict(zip(numbers, self.open(numbers), strict=True))
        with self._lock:
            if self._table is None or not held.keys() <= self._table.shards.keys():
                # The copy of a wanted shard may have gone: its mapping is still held here.
                self._table = _table({**self._open, **held}, self.places.starts)
            return self._table

    def _opened(self, number: int) -> Opened:
        """A shard, mapped and checked; what copies had to go for it is let go here too."""
        if self.folder.local is not None and (found := self._open.get(number)):
            return found  # of a remote one, `fetch` must see that it is used
        entry = self._entries[number]
        where = self.folder.at(entry["file"])
        with self._busy[number]:  # checked once, however many threads want it
            try:
                with self.folder.keeping(entry["file"]):
                    path = self.folder.fetch(entry["file"])
                    if number in self._open:
                        return self._open[number]
                    data = map_file(path)
            except (OSError, ValueError) as error:
                raise UserError(
                    f"expected the shard {where}; could not read it ({error}); the folder is damaged, cache it anew"
                ) from error
            opened = Opened(data, self._checked(data, entry, where))
            with self._lock:
                self._open[number] = opened
                self._is_open[number] = True
                self._table = None
                if self.folder.local is None:
                    self._open = {one: shard for one, shard in self._open.items() if self._is_kept(one)}
            return opened

    def _is_kept(self, number: int) -> bool:
        return self.folder.has_copy(self._entries[number]["file"])

    def _checked(self, data: Tensor, entry: dict[str, Any], where: str) -> dict[str, Tensor]:
        if not _is_as_written(data, entry):
            raise UserError(
                f"expected {where} as it was written; its checksum differs; the file is damaged, cache anew"
            )
        try:
            tensors = tensors_in(data, entry["file"])
        except ValueError as error:
            raise UserError(
                f"expected a safetensors shard at {where}; could not read it ({error}); cache anew"
            ) from error
        wanted, possible = self._wanted(entry["rows"])
        found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        if {**possible, **wanted} != {**possible, **found}:
            raise UserError(f"expected {where} to hold {wanted}, as its manifest says; it holds {found}; cache anew")
        return tensors

    def _wanted(self, rows: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Shape and type of the tensors that a shard must have, and of those that it may have."""
        dtype = stored_dtype(self._manifest)
        sites = {site["name"]: site["width"] for site in self._manifest["sites"]}
        wanted: dict[str, Any] = {name: ((rows, width), dtype) for name, width in sites.items()}
        wanted |= dict.fromkeys(COLUMNS, ((rows,), torch.int32))
        if dtype == torch.int8:
            wanted |= {f"{name}.scale": ((rows,), torch.float32) for name in sites}
        norms = [name for site in sites if (name := norm_column(self._manifest, site))]
        return wanted, dict.fromkeys(norms, ((rows,), torch.float32))


def _is_as_written(data: Tensor, entry: dict[str, Any]) -> bool:
    if len(data) != entry["bytes"]:
        return False
    if "xxh3" in entry:
        import xxhash

        return xxhash.xxh3_128_hexdigest(data.numpy().data) == entry["xxh3"]
    return hashlib.sha256(data.numpy().data).hexdigest() == entry["sha256"]


def _table(shards: dict[int, Opened], starts: Int[Tensor, "shard_and_end"]) -> Table:
    every = [shard.tensors for shard in shards.values()]
    ends = [end for tensors in every for tensor in tensors.values() for end in _ends(tensor)]
    lowest = min(ends) // WORD * WORD
    span = -(-(max(ends) - lowest) // WORD) * WORD
    memory = torch.frombuffer((ctypes.c_char * span).from_address(lowest), dtype=torch.uint8)
    numbers = list(shards)
    views = {}
    for name in {name for tensors in every for name in tensors}:
        # A norm may be missing from some shards: these are then not asked for it.
        found = torch.tensor([tensors[name].data_ptr() - lowest if name in tensors else 0 for tensors in every])
        like = next(tensors[name] for tensors in every if name in tensors)
        size = like.element_size()
        if like.ndim == 1 and bool((found % size == 0).all()):  # numbers, not rows of bytes: far quicker
            seen, stride, found = memory.view(like.dtype), 1, found // size
        else:
            stride = like[0].nbytes
            seen = memory.as_strided((span - stride + 1, stride), (1, 1))
        base = torch.zeros(len(starts) - 1, dtype=torch.int64)
        base[numbers] = found - stride * starts[numbers]
        views[name] = View(seen, base, stride, like[:0])
    return Table(shards, views)


def _ends(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
