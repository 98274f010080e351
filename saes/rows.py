"""The rows that a dictionary is trained on: which ones, in what order, and how they are centred and scaled.

From Shards: one pass measures the norms at every site of the dictionary and fits the exclusion rule (keep.py), documents
that are held out for evaluation are set aside, one pass over the rest gives mean and scale, and `batches(start)`
yields `(x, y)` in an order drawn from the seed, from any step on (so training can resume).
From any other iterable of `[token d]` tensors (or Batches): the first rows are collected until there are enough for
those statistics, then they and the rest are cut into batches as they come.

Scale is the root mean square of the centred entries, so training sees inputs of unit variance per dimension.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .config import DictionaryConfig, TrainConfig
from .dictionary import Scaling
from .errors import UserError
from .keep import KeepRule, fit_keep_rule, row_norms
from .shards import Batch, Shards

CHUNK = 16_384
STREAM_ROWS = 32_768


class Pair(NamedTuple):
    """What is read and what is to be written, of the same tokens."""

    x: Float[Tensor, "token d_in"]
    y: Float[Tensor, "token d_out"]


@runtime_checkable
class Rows(Protocol):
    """What training needs of its data."""

    config: DictionaryConfig
    keep: KeepRule
    scaling: Scaling
    metadata: dict[str, Any]

    def batches(self, start: int) -> Iterator[Pair]:
        """Batches from step `start` on."""
        ...


def open_rows(config: TrainConfig, data: Shards | Iterable[Any]) -> ShardRows | StreamRows:
    """Prepare `data` for training under `config`."""
    return ShardRows(config, data) if isinstance(data, Shards) else StreamRows(config, data)


class ShardRows:
    """Rows of Shards: kept by the rule, of documents that are not held out."""

    def __init__(self, config: TrainConfig, shards: Shards):
        self.train, self.shards = config, shards
        self.config = _with_sites(config.dictionary, shards)
        sites = list(dict.fromkeys([self.config.read, self.config.write]))
        norms = {site: torch.cat([row_norms(part[site]) for part in _chunks(shards, sites)]) for site in sites}
        for site, rows in norms.items():
            if not torch.isfinite(rows).all():
                raise UserError(
                    f"expected finite activations at {site}; {int((~rows.isfinite()).sum())} rows have NaN or infinity; "
                    "cache anew in float32"
                )
        self.keep = fit_keep_rule(norms, shards.positions, config.drop_positions, config.drop_norm)
        kept = shards.positions >= config.drop_positions
        for site, limit in self.keep.max_norm.items():
            kept &= norms[site] <= limit
        self.rows = (kept & ~held_out_rows(shards, config.held_out)).nonzero().squeeze(1)
        if len(self.rows) < 2:
            raise UserError(
                f"expected tokens to train on; the rule leaves {len(self.rows)} of {len(shards)}; cache more or relax it"
            )
        parts = (shards.read(sites, index) for index in self.rows.split(CHUNK))
        self.scaling = fit_scaling(
            (Pair(p[self.config.read].float(), p[self.config.write].float()) for p in parts), config.center
        )
        self.metadata = {
            "model": shards.manifest["model"],
            "shards": shards.fingerprint,
            "context": shards.manifest["context"],
            "held_out": config.held_out,
            "keep": self.keep.to_dict(),
            "rows": {"cached": len(shards), "dropped": int((~kept).sum()), "training": len(self.rows)},
        }

    def batches(self, start: int) -> Iterator[Pair]:
        """Batches of shuffled rows, from step `start` on, over as many epochs as are asked for.

        An epoch's last few rows, too few for a batch, wait for another epoch's order: the variance about the mean of a
        handful of rows, by which the loss is divided, is far too small.
        """
        read, write = self.config.read, self.config.write
        stream = self.shards.batches(
            self.train.batch, self.train.seed, list({read, write}), self.rows, start, epochs=2**31, only_whole=True
        )
        for batch in stream:
            x = batch.activations[read].float()
            yield Pair(x, x if write == read else batch.activations[write].float())


class StreamRows:
    """Rows of an iterable, in the order they come; positions are not known, so only the norm rule applies."""

    def __init__(self, config: TrainConfig, data: Iterable[Any]):
        self.config, self.batch = config.dictionary, config.batch
        pairs = (self._pair(item) for item in data)
        head: list[Pair] = []
        count = 0
        while count < STREAM_ROWS and (pair := next(pairs, None)) is not None:
            head.append(pair)
            count += len(pair.x)
        if not count:
            raise UserError("expected activations to train on; got an empty iterable; give tensors [token d]")
        norms = {
            self.config.read: torch.cat([row_norms(pair.x) for pair in head]),
            self.config.write: torch.cat([row_norms(pair.y) for pair in head]),
        }
        self.keep = fit_keep_rule(norms, None, 0, config.drop_norm)
        self.scaling = fit_scaling(map(self._kept, head), config.center)
        self.metadata = {"keep": self.keep.to_dict()}
        self._pairs = itertools.chain(head, pairs)

    def _pair(self, item: Any) -> Pair:
        if isinstance(item, Batch):
            item = item.activations
        if isinstance(item, Tensor):
            if self.config.is_transcoder:
                raise UserError(
                    f"expected {{site: tensor}} with {self.config.read} and {self.config.write}; got one tensor; "
                    "a transcoder needs both"
                )
            x = y = item
        else:
            missing = [site for site in (self.config.read, self.config.write) if site not in item]
            if missing:
                wanted = missing[0] or "a site named in the config"
                raise UserError(f"expected activations of {wanted}; got {', '.join(item)}; name the site")
            x, y = item[self.config.read], item[self.config.write]
        if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
            raise UserError(f"expected tensors [token d]; got shapes {tuple(x.shape)}, {tuple(y.shape)}")
        if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
            raise UserError("expected finite activations; got NaN or infinity in the stream; check what makes it")
        x_float = x.float()
        return Pair(x_float, x_float if y is x else y.float())

    def _kept(self, pair: Pair) -> Pair:
        kept = self.keep.mask(None, {self.config.read: pair.x, self.config.write: pair.y})
        x = pair.x[kept]
        return Pair(x, x if pair.y is pair.x else pair.y[kept])

    def batches(self, start: int) -> Iterator[Pair]:
        """Kept rows regrouped into batches of the configured size; the last may be as small as half of it.

        What remains is too few for a batch, unless it is all there is: the variance about the mean of a handful of rows, by
        which the loss is divided, is far too small.
        """
        waiting: list[Pair] = []
        is_first = True
        room = self.batch
        for pair in map(self._kept, self._pairs):
            while len(pair.x) >= room:
                yield _join([*waiting, Pair(pair.x[:room], pair.y[:room])])
                is_first = False
                pair, waiting, room = Pair(pair.x[room:], pair.y[room:]), [], self.batch
            if len(pair.x):
                waiting.append(pair)
                room -= len(pair.x)
        if waiting and (is_first or 2 * room <= self.batch):
            yield _join(waiting)


def _join(pairs: list[Pair]) -> Pair:
    return Pair(torch.cat([pair.x for pair in pairs]), torch.cat([pair.y for pair in pairs]))


def _with_sites(config: DictionaryConfig, shards: Shards) -> DictionaryConfig:
    """The config with its sites named, taking the only cached site where none was given."""
    import dataclasses

    if not config.site:
        if len(shards.sites) != 1:
            raise UserError(f"expected --site, one of {', '.join(shards.sites)}; got none; name the site to train on")
        config = dataclasses.replace(config, site=(shards.sites[0],))
    for site in (config.read, config.write):
        shards.width(site)
    return config


def held_out_rows(shards: Shards, share: float) -> Bool[Tensor, "row"]:
    """True for the rows of the documents that are held out: `share` of the documents, drawn by their number alone."""
    count = int(shards.documents.max()) + 1
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    held: Int[Tensor, "document"] = order[: round(share * count)]
    return torch.isin(shards.documents, held)


def _chunks(shards: Shards, sites: list[str]) -> Iterator[dict[str, Tensor]]:
    for start in range(0, len(shards), CHUNK):
        yield shards.read(sites, slice(start, start + CHUNK))


def fit_scaling(pairs: Iterable[Pair], center: bool) -> Scaling:
    """Mean and root mean square of x and y, accumulated in float64."""
    totals: list[Tensor] = []
    count = 0
    for pair in pairs:
        parts = [part for side in pair for part in (side.double().sum(0), side.double().square().sum(0))]
        totals = parts if not totals else [total + part for total, part in zip(totals, parts, strict=True)]
        count += len(pair.x)
    sums, squares = totals[0::2], totals[1::2]
    means = [total / count if center else torch.zeros_like(total) for total in sums]
    variances = [square / count - mean.square() for square, mean in zip(squares, means, strict=True)]
    scales = [max(float(variance.clamp_min(0).mean().sqrt()), 1e-12) for variance in variances]
    return Scaling(means[0].float(), scales[0], means[1].float(), scales[1])
