"""The rows that a dictionary is trained on: which ones, in what order, and how they are centred and scaled.

From Shards: one pass measures the norms at every site of the dictionary and fits the exclusion rule (keep.py), documents
that are held out for evaluation are set aside, one pass over the rest gives mean and scale, and `batches(start)`
yields `(x, y)` in an order drawn from the seed, from any step on (so training can resume).
From any other iterable of `[token d]` tensors (or Batches): the first rows are collected until there are enough for
those statistics, then they and the rest are cut into batches as they come.

Scale is the root mean square of a site's centred entries, so training sees inputs of unit variance per dimension. Several sites
stand side by side in one matrix (layout.py), each with its own mean and scale.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .config import TrainConfig
from .dictionary_config import DictionaryConfig
from .errors import UserError
from .fold import Scaling
from .keep import KeepRule, fit_keep_rule, row_norms
from .layout import Layout, columns, layout_for
from .shards import Batch, Shards

CHUNK = 16_384
STREAM_ROWS = 32_768
MEDIAN_ROWS = 32_768  # rows that the geometric median is fitted on


class Pair(NamedTuple):
    """What is read and what is to be written, of the same tokens, sites side by side; one tensor twice if they are the same."""

    x: Float[Tensor, "token d_in"]
    y: Float[Tensor, "token d_out"]


@runtime_checkable
class Rows(Protocol):
    """What training needs of its data."""

    config: DictionaryConfig
    layout: Layout
    keep: KeepRule
    scaling: Scaling
    metadata: dict[str, Any]

    def batches(self, start: int) -> Iterator[Pair]:
        """Batches from step `start` on."""
        ...


def open_rows(
    config: TrainConfig, data: Shards | Iterable[Any], about: Mapping[str, Any] | None = None
) -> ShardRows | StreamRows:
    """Prepare `data` for training under `config`; `about` is a stream's provenance, if not its own `about`."""
    if isinstance(data, Shards):
        return ShardRows(config, data)
    return StreamRows(config, data, getattr(data, "about", {}) if about is None else about)


class Item(NamedTuple):
    """An item of a stream: activations of each site, and the positions of its rows if they are known."""

    activations: dict[str, Tensor]
    positions: Int[Tensor, "token"] | None


class ShardRows:
    """Rows of Shards: kept by the rule, of documents that are not held out."""

    def __init__(self, config: TrainConfig, shards: Shards):
        self.train, self.shards = config, shards
        self.config = _with_sites(config.dictionary, shards)
        sites = list(self.config.sites)
        self.layout = layout_for(self.config, {site: shards.width(site) for site in sites})
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
        self.scaling = fit_scaling((paired(self.layout, part) for part in parts), config.center, self.layout)
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
        for batch in self.read(list(self.config.sites), start):
            yield paired(self.layout, batch.activations)

    def read(self, sites: list[str], start: int) -> Iterator[Batch]:
        """The batches of `batches` as they are stored, at any sites."""
        return self.shards.batches(
            self.train.batch, self.train.seed, sites, self.rows, start, epochs=2**31, only_whole=True
        )


class StreamRows:
    """Rows of an iterable, in the order they come; only Batches tell positions, else the norm rule alone applies."""

    def __init__(self, config: TrainConfig, data: Iterable[Any], about: Mapping[str, Any] | None = None):
        self.config, self.batch = config.dictionary, config.batch
        self.sites: tuple[str, ...] = self.config.sites or ("",)
        items = (self._checked(item) for item in data)
        head: list[Item] = []
        count = 0
        while count < STREAM_ROWS and (item := next(items, None)) is not None:
            head.append(item)
            count += len(item.activations[self.sites[0]])
        if not count:
            raise UserError("expected activations to train on; got an empty iterable; give tensors [token d]")
        self.layout = layout_for(self.config, {site: head[0].activations[site].shape[1] for site in self.sites})
        norms = {site: torch.cat([row_norms(item.activations[site]) for item in head]) for site in self.sites}
        known = [item.positions for item in head if item.positions is not None]
        positions = torch.cat(known) if len(known) == len(head) else None
        self.keep = fit_keep_rule(norms, positions, 0 if positions is None else config.drop_positions, config.drop_norm)
        self.scaling = fit_scaling(map(self._kept, head), config.center, self.layout)
        self.metadata = {**(about or {}), "keep": self.keep.to_dict()}
        self._items = itertools.chain(head, items)

    def _checked(self, item: Any) -> Item:
        """An item of the stream as finite activations of each site."""
        positions = None
        if isinstance(item, Batch):
            item, positions = item.activations, item.positions
        if isinstance(item, Tensor):
            if len(self.sites) > 1:
                raise UserError(
                    f"expected {{site: tensor}} with {', '.join(self.sites)}; got one tensor; a dictionary of several sites needs all"
                )
            item = {next(iter(self.sites)): item}
        missing = [site for site in self.sites if site not in item]
        if missing:
            wanted = missing[0] or "a site named in the config"
            raise UserError(f"expected activations of {wanted}; got {', '.join(item)}; name the site")
        item = {site: item[site] for site in self.sites}
        if any(x.ndim != 2 for x in item.values()) or len({len(x) for x in item.values()}) > 1:
            raise UserError(
                f"expected tensors [token d]; got shapes {', '.join(str(tuple(x.shape)) for x in item.values())}"
            )
        if not all(torch.isfinite(x).all() for x in item.values()):
            raise UserError("expected finite activations; got NaN or infinity in the stream; check what makes it")
        return Item(item, positions)

    def _kept(self, item: Item) -> Pair:
        kept = self.keep.mask(item.positions, item.activations)
        return paired(self.layout, {site: x[kept] for site, x in item.activations.items()})

    def batches(self, start: int) -> Iterator[Pair]:
        """Kept rows regrouped into batches of the configured size; the last may be as small as half of it.

        What remains is too few for a batch, unless it is all there is: the variance about the mean of a handful of rows, by
        which the loss is divided, is far too small.
        """
        waiting: list[Pair] = []
        is_first = True
        room = self.batch
        for pair in map(self._kept, self._items):
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


def paired(layout: Layout, activations: Mapping[str, Tensor]) -> Pair:
    """What is read and written of these activations, in float32."""
    x = layout.flat(activations, layout.reads).float()
    return Pair(x, x if layout.writes == layout.reads else layout.flat(activations, layout.writes).float())


def _with_sites(config: DictionaryConfig, shards: Shards) -> DictionaryConfig:
    """The config with its sites named, taking the only cached site where none was given."""
    import dataclasses

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


def _chunks(shards: Shards, sites: list[str]) -> Iterator[dict[str, Tensor]]:
    for start in range(0, len(shards), CHUNK):
        yield shards.read(sites, slice(start, start + CHUNK))


def fit_scaling(pairs: Iterable[Pair], center: str, layout: Layout) -> Scaling:
    """Mean (or geometric median) and root mean square of each site, accumulated in float64."""
    totals: list[Tensor] = []
    count = 0
    sample: list[Pair] = []
    for pair in pairs:
        parts = [part for side in pair for part in (side.double().sum(0), side.double().square().sum(0))]
        totals = parts if not totals else [total + part for total, part in zip(totals, parts, strict=True)]
        count += len(pair.x)
        sample += [pair] if center == "median" and sum(len(one.x) for one in sample) < MEDIAN_ROWS else []
    sums, squares = totals[0::2], totals[1::2]
    means = [total / count for total in sums]
    if center == "median":
        means = [geometric_median(torch.cat(side).double()) for side in zip(*sample, strict=True)]
    if center == "none":
        means = [torch.zeros_like(total) for total in sums]
    # mean (x - m)^2 = mean x^2 - 2 m mean x + m^2, for the centre m that was chosen
    around = [
        square / count - 2 * mean * total / count + mean.square()
        for square, mean, total in zip(squares, means, sums, strict=True)
    ]
    scale_in, scale_out = (_scales(one, of) for one, of in zip(around, (layout.reads, layout.writes), strict=True))
    if layout.is_shared and not layout.config.is_sae:
        # One pair of matrices serves all sites only where written and read scales have one ratio.
        scale_out = [one * sum(scale_out) / sum(scale_in) for one in scale_in]
    return Scaling(
        means[0].float(), _by_column(scale_in, layout.reads), means[1].float(), _by_column(scale_out, layout.writes)
    )


def _scales(variance: Float[Tensor, "d"], widths: Mapping[str, int]) -> list[float]:
    return [max(float(variance[site].clamp_min(0).mean().sqrt()), 1e-12) for site in columns(widths)]


def _by_column(scales: list[float], widths: Mapping[str, int]) -> float | Float[Tensor, "d"]:
    """One number for one site; else each site's number at all its columns."""
    if len(scales) == 1:
        return scales[0]
    return torch.cat([torch.full((width,), scale) for scale, width in zip(scales, widths.values(), strict=True)])


def geometric_median(x: Float[Tensor, "row d"], rounds: int = 100) -> Float[Tensor, "d"]:
    """The point with the least summed distance to the rows, by Weiszfeld's iteration from the mean (Vardi and Zhang 2000, eq. 2.6)."""
    point = x.mean(0)
    for _ in range(rounds):
        weight = 1 / (x - point).norm(dim=1).clamp_min(1e-12)
        moved = (weight @ x) / weight.sum()
        if (moved - point).norm() <= 1e-9 * moved.norm().clamp_min(1e-30):
            return moved
        point = moved
    return point
