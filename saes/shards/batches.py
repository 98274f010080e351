"""Batches of Shards: which rows come when, read ahead of whoever uses them.

Two kinds of work are done in advance. Batches are read by one background thread (prefetch.py). And while one window of
shards is being read, those of the next are fetched, checked and brought into memory, so that no batch waits for a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from jaxtyping import Int
from torch import Tensor

from ..errors import UserError
from .files import FETCHES
from .order import RowOrder
from .prefetch import prefetched


class Batch(NamedTuple):
    """Rows of Shards: activations of each site `[token d]`, and what token each row is."""

    activations: dict[str, Tensor]
    tokens: Int[Tensor, "token"]
    positions: Int[Tensor, "token"]
    documents: Int[Tensor, "token"]


class Extent(NamedTuple):
    """Which batches: of how many rows, from which one on, over how many epochs, and which part of each."""

    batch: int
    start: int
    epochs: int
    only_whole: bool
    part: tuple[int, int]


class Place(NamedTuple):
    """Where a batch lies in the order of an epoch."""

    epoch: int
    start: int
    stop: int


def read_batches(
    read: Callable[[slice | Tensor], Batch], prepare: Callable[[int, int], None] | None, order: RowOrder, extent: Extent, ahead: int
) -> Iterator[Batch]:  # fmt: skip
    """Batches in an order. `read` takes rows, `prepare` the span of rows of a shard that will be wanted (None: do not)."""
    if extent.batch < 1:
        raise UserError(f"expected a batch of at least one row; got {extent.batch}; raise it")
    if not 0 <= extent.part[0] < extent.part[1]:
        raise UserError(
            f"expected a part (r, D) with 0 <= r < D; got {extent.part}; give the rank and how many there are"
        )
    if ahead < 0:
        raise UserError(f"expected a number of batches to read ahead, 0 for none; got {ahead}; raise it")
    return prefetched(_read(read, prepare if ahead else None, order, extent), ahead)


def _places(extent: Extent, rows: int) -> Iterator[Place]:
    batch, start, epochs, only_whole, _ = extent
    per_epoch = rows // batch if only_whole and rows >= batch else -(-rows // batch)
    for epoch in range(start // per_epoch if per_epoch else 0, epochs):
        for number in range(max(0, start - epoch * per_epoch), per_epoch):
            yield Place(epoch, number * batch, min((number + 1) * batch, rows))


def _read(
    read: Callable[[slice | Tensor], Batch], prepare: Callable[[int, int], None] | None, order: RowOrder, extent: Extent
) -> Iterator[Batch]:
    prepared: list[tuple[int, int]] = []
    rank, ranks = extent.part
    with ThreadPoolExecutor(FETCHES, "unweave-ahead") as pool:
        try:
            for epoch, start, stop in _places(extent, len(order)):
                count = stop - start
                batch = read(order.piece(epoch, start + rank * count // ranks, start + (rank + 1) * count // ranks))
                if prepare and (after := order.after(epoch, stop - 1)) != prepared:
                    prepared = after
                    for span in after:
                        pool.submit(prepare, *span)
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)
