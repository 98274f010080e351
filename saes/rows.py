"""The rows that a dictionary is trained on: which ones, in what order, and how they are centred and scaled.

From Shards: the norms at every site of the dictionary fit the exclusion rule (keep.py), documents that are held out for evaluation
are set aside, up to SCALING_ROWS of the rest give mean and scale (scaling.py), and `batches(start)` yields `(x, y)` in an
order drawn from the seed, from any step on (so training can resume).
From any other iterable of `[token d]` tensors (or Batches), and straight from a model: stream_rows.py.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .config import TrainConfig
from .dictionary_config import DictionaryConfig
from .errors import UserError
from .fold import Scaling
from .keep import KeepRule, fit_keep_rule
from .layout import Layout, layout_for
from .scaling import Pair, fit_scaling, geometric_median, paired
from .shards.folder import Batch, Shards
from .stream_rows import Saved, StreamRows, blocks_before, since

__all__ = ["Pair", "Rows", "ShardRows", "StreamRows", "fit_scaling", "geometric_median", "held_out_rows", "open_all",
           "open_rows", "paired"]  # fmt: skip

CHUNK = 16_384
SCALING_ROWS = 2**20  # rows that mean and scale are fitted on, evenly spaced


@runtime_checkable
class Rows(Protocol):
    """What training needs of its data. `source` names the data for a checkpoint; empty: a run on it cannot be resumed."""

    config: DictionaryConfig
    layout: Layout
    keep: KeepRule
    scaling: Scaling
    metadata: dict[str, Any]
    source: dict[str, Any]

    def batches(self, start: int) -> Iterator[Pair]:
        """Batches from step `start` on."""
        ...

    def cursor(self, step: int) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
        """What a checkpoint after `step` steps needs, besides the step, to go on: JSON, and tensors by name."""
        ...


def open_rows(config: TrainConfig, data: Shards | Iterable[Any], saved: Saved | None = None) -> ShardRows | StreamRows:
    """Prepare `data` for training under `config`, from the start or from where a checkpoint (`Checkpoints.latest`) was written."""
    return open_all([config], data, [saved])[0]


def open_all(
    configs: Sequence[TrainConfig], data: Shards | Iterable[Any], saved: Sequence[Saved | None]
) -> list[ShardRows | StreamRows]:
    """The rows of each config; a stream is split so that each item is made once, from the least that any of them has seen on."""
    if isinstance(data, Shards):
        return [ShardRows(config, data) for config in configs]
    items = since(data, min(blocks_before(one) for one in saved))
    copies = [items] if len(configs) == 1 else itertools.tee(items, len(configs))
    return [StreamRows(config, copy, data, one) for config, copy, one in zip(configs, copies, saved, strict=True)]


class ShardRows:
    """Rows of Shards: kept by the rule, of documents that are not held out."""

    def __init__(self, config: TrainConfig, shards: Shards):
        self.train, self.shards = config, shards
        self.config = _with_sites(config.dictionary, shards)
        sites = list(self.config.sites)
        self.layout = layout_for(self.config, {site: shards.width(site) for site in sites})
        norms = norms_of(shards, sites)
        special = tuple(shards.manifest.get("special", ())) if config.drop_special else ()
        tokens = shards.tokens if special else None
        self.keep = fit_keep_rule(
            norms, shards.positions, config.drop_positions, config.drop_norm, tokens, special, config.massive
        )
        reasons = self.keep.reasons(shards.positions, norms, tokens)
        kept = self.keep.trained(reasons)
        self.rows = (kept & ~held_out_rows(shards, config.held_out)).nonzero().squeeze(1)
        if len(self.rows) < 2:
            raise UserError(
                f"expected tokens to train on; the rule leaves {len(self.rows)} of {len(shards)}; cache more or relax it"
            )
        fitted = evenly(self.rows, SCALING_ROWS)
        parts = (self.keep.clip(shards.read(sites, index)) for index in fitted.split(CHUNK))
        self.scaling = fit_scaling((paired(self.layout, part) for part in parts), config.center, self.layout)
        self.source = {"shards": shards.fingerprint}
        self.metadata = {
            "model": shards.manifest["model"],
            "shards": shards.fingerprint,
            "context": shards.manifest["context"],
            "held_out": config.held_out,
            "keep": self.keep.to_dict(),
            "rows": {
                "cached": len(shards),
                "dropped": int((~kept).sum()),
                **self.keep.counts(reasons),
                "training": len(self.rows),
            },
        }

    def batches(self, start: int, part: tuple[int, int] = (0, 1)) -> Iterator[Pair]:
        """Batches of shuffled rows, from step `start` on, over as many epochs as are asked for; `part` as in Shards.batches.

        An epoch's last few rows, too few for a batch, wait for another epoch's order: the variance about the mean of a
        handful of rows, by which the loss is divided, is far too small.
        """
        return map(self.pair, self.read(list(self.config.sites), start, part))

    def read(self, sites: list[str], start: int, part: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """The batches of `batches` as they are stored, at any sites, without tokens."""
        own = self.train
        return self.shards.batches(
            own.batch, own.seed, sites, self.rows, start, 2**31, True, window=own.window, part=part, columns=False
        )

    def pair(self, batch: Batch) -> Pair:
        """What training sees of a batch of `read`, before it is centred and scaled."""
        return paired(self.layout, self.keep.clip(batch.activations))

    def cursor(self, step: int) -> tuple[None, dict[str, Tensor]]:
        """Nothing: the order of all rows follows from the seed."""
        return None, {}


def norms_of(shards: Shards, sites: list[str]) -> dict[str, Tensor]:
    """Norm `[row]` of every row at each site; UserError where one is not finite."""
    norms = {site: shards.norms(site) for site in sites}
    for site, rows in norms.items():
        if not torch.isfinite(rows).all():
            raise UserError(
                f"expected finite activations at {site}; {int((~rows.isfinite()).sum())} rows have NaN or infinity; "
                "cache anew in float32"
            )
    return norms


def evenly(rows: Int[Tensor, "row"], most: int) -> Int[Tensor, "some"]:
    """All rows, or `most` of them, evenly spaced."""
    return rows if len(rows) <= most else rows[torch.arange(most) * len(rows) // most]


def _with_sites(config: DictionaryConfig, shards: Shards) -> DictionaryConfig:
    """The config with its sites named, taking the only cached site where none was given."""
    if not config.site:
        if len(shards.sites) != 1:
            raise UserError(f"expected --site, one of {', '.join(shards.sites)}; got none; name the site to train on")
        config = dataclasses.replace(config, site=(shards.sites[0],))
    for site in config.sites:
        shards.width(site)
    return config


def held_out_rows(shards: Shards, share: float) -> Bool[Tensor, "row"]:
    """True for the rows of the documents that are held out: `share` of the documents, drawn by their number alone."""
    count = int(shards.documents.max()) + 1
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    held: Int[Tensor, "document"] = order[: round(share * count)]
    return torch.isin(shards.documents, held)
