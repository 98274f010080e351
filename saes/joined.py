"""Shards of several models over the same tokens, read as one: what a crosscoder over two models is trained on.

    both = join_shards({"base": Shards.open("base"), "tuned": Shards.open("tuned")})
    train(TrainConfig(site=("base:blocks.6.hook_resid_post", "tuned:blocks.6.hook_resid_post")), both)

Sites carry the name of their model in front. The rows must be the same tokens at the same positions of the same documents; that is
checked row by row, since a crosscoder of misaligned rows looks sound and means nothing. Nothing is copied.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float32, Int
from torch import Tensor

from .errors import UserError
from .shards.folder import Batch, Shards


class JoinedShards(Shards):
    """Several Shards of equal rows; `join_shards` makes it."""

    def __init__(self, parts: Mapping[str, Shards]):
        self.parts = dict(parts)
        first = next(iter(self.parts.values()))
        sites = [
            {**site, "name": f"{name}:{site['name']}"}
            for name, part in self.parts.items()
            for site in part.manifest["sites"]
        ]
        manifest: dict[str, Any] = {**first.manifest, "sites": sites}
        manifest["models"] = {name: part.manifest["model"] for name, part in self.parts.items()}
        names = " ".join(f"{name}={part.fingerprint}" for name, part in self.parts.items())
        manifest["fingerprint"] = hashlib.blake2b(names.encode(), digest_size=16).hexdigest()
        manifest["model"] = joined_model(manifest["models"])
        super().__init__(first.storage, manifest)

    @cached_property
    def tokens(self) -> Int[Tensor, "row"]:
        """Token id of every row, in the first model's vocabulary."""
        return next(iter(self.parts.values())).tokens

    @cached_property
    def positions(self) -> Int[Tensor, "row"]:
        """Position of every row within its block."""
        return next(iter(self.parts.values())).positions

    @cached_property
    def documents(self) -> Int[Tensor, "row"]:
        """Document number of every row."""
        return next(iter(self.parts.values())).documents

    @property
    def dtype(self) -> torch.dtype:
        """The type that activations are read in: the wider one where they differ."""
        first, *others = (part.dtype for part in self.parts.values())
        for other in others:
            first = torch.promote_types(first, other)
        return first

    def read(self, sites: list[str], rows: int | slice | Int[Tensor, "row"] | Bool[Tensor, "row"]) -> dict[str, Tensor]:
        """The chosen rows of several sites, each from the Shards that its name begins with."""
        for site in sites:
            self.width(site)
        out: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            own = [site.removeprefix(f"{name}:") for site in sites if site.startswith(f"{name}:")]
            if own:
                out |= {f"{name}:{site}": x.to(self.dtype) for site, x in part.read(own, rows).items()}
        return {site: out[site] for site in sites}

    def _batch(self, sites: list[str], rows: slice | Int[Tensor, "row"], with_columns: bool = True) -> Batch:
        """The chosen rows, and what token each is in the first model's vocabulary."""
        _, *columns = next(iter(self.parts.values()))._batch([], rows, with_columns)
        return Batch(self.read(sites, rows), *columns)

    def norms(self, site: str) -> Float32[Tensor, "row"]:
        """Norms of one site, of the Shards that its name begins with."""
        self.width(site)
        name, _, own = site.partition(":")
        return self.parts[name].norms(own)

    def _prepare(self, start: int, stop: int) -> None:
        """Have the rows from `start` to `stop` of every part made ready."""
        for part in self.parts.values():
            part._prepare(start, stop)

    def _has_room(self, window: int) -> bool:
        """Whether every part has room for two windows."""
        rooms = [part._has_room(window) for part in self.parts.values()]  # all of them, each may refuse
        return all(rooms)

    def __repr__(self) -> str:
        return f"JoinedShards({', '.join(f'{name}: {part.folder}' for name, part in self.parts.items())}; {len(self):,} rows)"


def join_shards(parts: Mapping[str, Shards]) -> JoinedShards:
    """Several Shards as one, their sites named `name:site`.

    UserError unless there are two or more, named without a colon, of the same rows: tokens, positions and documents.
    """
    if len(parts) < 2 or any(not name or ":" in name for name in parts):
        raise UserError(f"expected two or more Shards, with names without a colon; got {', '.join(parts) or 'none'}")
    (first_name, first), *others = parts.items()
    for name, part in others:
        if len(part) != len(first):
            raise UserError(
                f"expected Shards of the same rows; {first_name} has {len(first):,} and {name} {len(part):,}; "
                "cache the same text with the same context"
            )
        for what in ("positions", "documents", "tokens"):
            differ = getattr(first, what) != getattr(part, what)
            if bool(differ.any()):
                raise UserError(
                    f"expected Shards of the same rows; {what} of {first_name} and {name} differ from row "
                    f"{int(differ.nonzero()[0])} on; cache the same text with models that share a tokenizer"
                )
    return JoinedShards(parts)


def joined_model(models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What stands for the model in the provenance: all names, and a fingerprint of all fingerprints."""
    first = next(iter(models.values()))
    together = " ".join(str(model["fingerprint"]) for model in models.values())
    name = " + ".join(str(model["name"]) for model in models.values())
    return {**first, "name": name, "fingerprint": hashlib.blake2b(together.encode(), digest_size=16).hexdigest()}
