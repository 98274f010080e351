"""Shards: cached activations of one or more sites, row by row, with the token each row belongs to.

A folder with `manifest.json` and `shard-00000.safetensors` …; each shard holds one tensor per site `[row d]` and
`tokens`, `positions`, `documents` `[row]` (int32). Rows lie in text order and a block is never split over two shards.
A shard is written under a temporary name, flushed and renamed, then the manifest is; so a killed run loses at most the
shard it was writing, and `finished` in the manifest says whether the run came to its end.

Reading is memory-mapped. The size of every shard is compared with the manifest when the folder is opened, its SHA-256
when the shard is first touched. Keys of the manifest are in docs/formats.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from .drawn import drawn
from .errors import UserError
from .io import map_tensors, read_json, sha256_file

FORMAT, VERSION = "unweave.shards", 1


class Batch(NamedTuple):
    """Rows of Shards: activations of each site `[token d]`, and what token each row is."""

    activations: dict[str, Tensor]
    tokens: Int[Tensor, "token"]
    positions: Int[Tensor, "token"]
    documents: Int[Tensor, "token"]


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

    def __getitem__(self, rows: int | slice | Int[Tensor, "row"] | Bool[Tensor, "row"]) -> Shaped[Tensor, "..."]:
        return self.shards.read([self.site], rows)[self.site]


class Shards:
    """An opened Shards folder: `len(shards)` rows, `shards[site]` rows on demand, `shards.batches(4096, seed=0)`."""

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        self.folder, self.manifest = folder, manifest
        self._files = manifest["shards"]
        counts = torch.tensor([entry["rows"] for entry in self._files], dtype=torch.int64)
        self._starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        self._open: dict[int, dict[str, Tensor]] = {}

    @staticmethod
    def open(folder: str | Path, unfinished: bool = False) -> Shards:
        """Open a finished folder (or, with `unfinished`, what a stopped run left); UserError when it is damaged."""
        folder = Path(folder)
        manifest = read_json(folder / "manifest.json", "the manifest of a Shards folder")
        if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
            raise UserError(
                f"expected {FORMAT} version {VERSION} in {folder}; got {manifest.get('format')!r} version "
                f"{manifest.get('version')!r}; cache the activations again with this version"
            )
        _check_manifest(folder, manifest)
        if not manifest["finished"] and not unfinished:
            raise UserError(
                f"expected a finished Shards folder; {folder} stopped at {manifest['rows']:,} of "
                f"{manifest['target_rows']:,} rows; finish it with `unweave cache … --out {folder} --resume`"
            )
        for entry in manifest["shards"]:
            _check_size(folder / entry["file"], entry["bytes"])
        return Shards(folder, manifest)

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

    def __len__(self) -> int:
        return int(self._starts[-1])

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
        return self._column("tokens")

    @cached_property
    def positions(self) -> Int[Tensor, "row"]:
        """Position of every row within its block; 0 is the BOS."""
        return self._column("positions")

    @cached_property
    def documents(self) -> Int[Tensor, "row"]:
        """Document number of every row."""
        return self._column("documents")

    def _column(self, name: str) -> Int[Tensor, "row"]:
        return torch.cat([self._shard(number)[name] for number in range(len(self._files))]).long()

    def _shard(self, number: int) -> dict[str, Tensor]:
        if number not in self._open:
            entry = self._files[number]
            path = self.folder / entry["file"]
            if sha256_file(path) != entry["sha256"]:
                raise UserError(
                    f"expected {path} as it was written; its checksum differs; the file is damaged, cache anew"
                )
            self._open[number] = self._checked(path, entry["rows"])
        return self._open[number]

    def _checked(self, path: Path, rows: int) -> dict[str, Tensor]:
        wanted = {site: ((rows, self.width(site)), self.dtype) for site in self.sites}
        wanted |= dict.fromkeys(("tokens", "positions", "documents"), ((rows,), torch.int32))
        try:
            tensors = map_tensors(path)
        except (OSError, ValueError) as error:
            raise UserError(
                f"expected a safetensors shard at {path}; could not read it ({error}); cache anew"
            ) from error
        found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        if found != wanted:
            raise UserError(f"expected {path} to hold {wanted}, as its manifest says; it holds {found}; cache anew")
        return tensors

    def read(self, sites: list[str], rows: int | slice | Int[Tensor, "row"] | Bool[Tensor, "row"]) -> dict[str, Tensor]:
        """The chosen rows of several sites, in the stored dtype; UserError for a row outside the folder."""
        if isinstance(rows, slice):
            rows = torch.arange(*rows.indices(len(self)))
        index = torch.as_tensor(rows)
        index = index.nonzero().squeeze(1) if index.dtype == torch.bool else index.to(torch.int64).reshape(-1)
        if len(index) and not (0 <= int(index.min()) and int(index.max()) < len(self)):
            raise UserError(f"expected rows in [0, {len(self)}); got {int(index.min())} to {int(index.max())}")
        owner = torch.searchsorted(self._starts, index, right=True) - 1
        out = {site: torch.empty(len(index), self.width(site), dtype=self.dtype) for site in sites}
        for number in owner.unique().tolist():
            chosen = (owner == number).nonzero().squeeze(1)
            tensors = self._shard(number)
            for site in sites:
                out[site][chosen] = tensors[site][index[chosen] - self._starts[number]]
        return out

    @property
    def dtype(self) -> torch.dtype:
        """The stored dtype of the activations."""
        return getattr(torch, self.manifest["dtype"])

    def batches(
        self,
        batch: int,
        seed: int | None = 0,
        sites: list[str] | None = None,
        rows: Int[Tensor, "row"] | Bool[Tensor, "row"] | None = None,
        start: int = 0,
        epochs: int = 1,
        only_whole: bool = False,
    ) -> Iterator[Batch]:
        """Batches over `rows` (default all), in an order drawn anew for each epoch from `seed` (None: in text order).

        The permutation is over all rows, so shuffling does not depend on a buffer. The last batch of an epoch may be
        smaller; nothing is dropped, unless `only_whole`, which leaves the smaller batch out where there is a whole one.
        `start` skips that many batches without reading them: the order of the rest is what it would have been.
        """
        if batch < 1:
            raise UserError(f"expected a batch of at least one row; got {batch}; raise it")
        chosen = torch.arange(len(self)) if rows is None else torch.as_tensor(rows)
        chosen = chosen.nonzero().squeeze(1) if chosen.dtype == torch.bool else chosen
        per_epoch = len(chosen) // batch if only_whole and len(chosen) >= batch else -(-len(chosen) // batch)
        for epoch in range(start // per_epoch if per_epoch else 0, epochs):
            order = chosen if seed is None else chosen[_permutation(len(chosen), seed, epoch)]
            for number in range(max(0, start - epoch * per_epoch), per_epoch):
                index = order[number * batch : (number + 1) * batch]
                activations = self.read(sites or self.sites, index)
                yield Batch(activations, self.tokens[index], self.positions[index], self.documents[index])


def _permutation(n: int, seed: int, epoch: int) -> Int[Tensor, "row"]:
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(n, generator=generator)


def _check_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """UserError unless the manifest has every entry that reading needs, and names files of its own folder only."""
    try:
        dtype = getattr(torch, manifest["dtype"])
        is_whole = (
            isinstance(dtype, torch.dtype)
            and all(isinstance(site["name"], str) and int(site["width"]) > 0 for site in manifest["sites"])
            and all(Path(entry["file"]).name == entry["file"] for entry in manifest["shards"])
            and sum(int(entry["rows"]) for entry in manifest["shards"]) == manifest["rows"]
            and all({"bytes", "sha256", "blocks"} <= entry.keys() for entry in manifest["shards"])
            and bool(manifest["rows"] or not manifest["finished"])
            and {"name", "fingerprint", "bos"} <= manifest["model"].keys()
            and {"finished", "fingerprint", "context", "target_rows"} <= manifest.keys()
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        is_whole = False
    if not is_whole:
        raise UserError(
            f"expected a whole manifest in {folder}; entries are missing or malformed; cache the activations anew"
        )


def _check_size(path: Path, expected: int) -> None:
    size = path.stat().st_size if path.exists() else None
    if size != expected:
        came = "no file" if size is None else f"{size:,} bytes"
        raise UserError(f"expected {path} of {expected:,} bytes; got {came}; the folder is damaged, cache it anew")
