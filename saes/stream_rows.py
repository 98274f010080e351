"""Rows of a stream: any iterable of `[token d]` tensors, of `{site: tensor}`, of Batches, or what `stream` makes (streamed.py).

The first rows are collected until there are enough to fit the exclusion rule, mean and scale; then they and the rest are cut into
batches as they come. Only Batches tell positions and tokens, else the norm rule alone applies.

Activations straight from a model come in windows that can be made anew, so a run on them can be resumed. Its checkpoint holds what
was fitted, and a cursor: the blocks of text before the window that the run is in, how many of its kept rows were taken, and a
checksum of the text up to its end. On resume nothing is fitted, the blocks are passed over, the window is made anew, compared, and
its first rows are passed over.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from .config import TrainConfig
from .errors import UserError
from .fold import Scaling
from .keep import KeepRule, fit_keep_rule, row_norms
from .layout import layout_for
from .scaling import Pair, fit_scaling, paired
from .shards.folder import Batch
from .streamed import Piece, Stream

STREAM_ROWS = 32_768  # rows that rule, mean and scale are fitted on
LOOKAHEAD = 64  # batches that may be taken before a checkpoint asks where an earlier one ended

Saved = tuple[dict[str, Any], dict[str, Tensor]]


def since(data: Iterable[Any], blocks: int) -> Iterator[Any]:
    """The items of a stream, those of a model's from its window after so many blocks on."""
    return data.since(blocks) if isinstance(data, Stream) else iter(data)


def blocks_before(saved: Saved | None) -> int:
    """Blocks that a checkpoint's run on a stream has no more need of."""
    cursor = saved[0].get("cursor") if saved else None
    return int(cursor["blocks"]) if cursor else 0


class Window(NamedTuple):
    """Of a model's stream: the blocks before a window, the checksum of the text up to its end; and the kept rows before it."""

    blocks: int
    text: str
    rows: int = 0


class Item(NamedTuple):
    """An item of a stream: activations of each site, positions and tokens of its rows if they are known, and its window."""

    activations: dict[str, Tensor]
    positions: Int[Tensor, "token"] | None
    tokens: Int[Tensor, "token"] | None
    window: Window | None


class StreamRows:
    """Rows of `items`, in the order they come; `data` is the stream that they are of, `saved` the checkpoint to go on from."""

    def __init__(self, config: TrainConfig, items: Iterable[Any], data: Any = None, saved: Saved | None = None):
        self.config, self.batch = config.dictionary, config.batch
        self.sites: tuple[str, ...] = self.config.sites or ("",)
        self.source: dict[str, Any] = data.source if isinstance(data, Stream) else {}
        about = getattr(data, "about", {})
        self._windows = deque[Window]()
        self._cursor: dict[str, Any] = {}
        checked = (self._checked(item) for item in items)
        if saved and saved[0].get("cursor"):
            self._cursor = saved[0]["cursor"]
            self._restore(saved[1])
            self._items = self._after_cursor(checked)
        else:
            special = data.special if isinstance(data, Stream) and config.drop_special else ()
            self._items = self._fit(config, checked, special)
        self.metadata = {**about, "keep": self.keep.to_dict(), "rows": self._counted}

    def _fit(self, config: TrainConfig, items: Iterator[Item], special: tuple[int, ...]) -> Iterator[Item]:
        """Fit rule and scaling to the first rows; the same items."""
        head: list[Item] = []
        count = 0
        while count < STREAM_ROWS and (item := next(items, None)) is not None:
            head.append(item)
            count += len(item.activations[self.sites[0]])
        if not count:
            raise UserError("expected activations to train on; got an empty iterable; give tensors [token d]")
        self.layout = layout_for(self.config, {site: head[0].activations[site].shape[1] for site in self.sites})
        norms = {site: torch.cat([row_norms(item.activations[site]) for item in head]) for site in self.sites}
        positions = _column(item.positions for item in head)
        tokens = _column(item.tokens for item in head)
        drop = 0 if positions is None else config.drop_positions
        special = () if tokens is None else special
        self.keep = fit_keep_rule(norms, positions, drop, config.drop_norm, tokens, special, config.massive)
        self._counted = {"fitted": count, **self.keep.counts(self.keep.reasons(positions, norms, tokens))}
        self.scaling = fit_scaling(map(self._kept, head), config.center, self.layout)
        return itertools.chain(head, items)

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        self.layout = layout_for(self.config, self._cursor["widths"])
        self.keep, self._counted = KeepRule.from_dict(self._cursor["keep"]), self._cursor["rows"]
        mean_in, scale_in, mean_out, scale_out = (tensors[f"rows.{name}"] for name in Scaling._fields)
        scales = (scale if scale.ndim else float(scale) for scale in (scale_in, scale_out))
        self.scaling = Scaling(mean_in, next(scales), mean_out, next(scales))

    def _after_cursor(self, items: Iterator[Item]) -> Iterator[Item]:
        """The items from the cursor's window on, which must be of the text that the run was begun with."""
        blocks, text = self._cursor["blocks"], self._cursor["text"]
        items = itertools.dropwhile(lambda item: item.window is not None and item.window.blocks < blocks, items)
        first = next(items, None)
        if first is None or first.window is None or (first.window.blocks, first.window.text) != (blocks, text):
            raise UserError("expected the text that the run was begun with; got another; give it or a new --out")
        yield first
        yield from items

    def _checked(self, item: Any) -> Item:
        """An item of the stream as finite activations of each site."""
        positions = tokens = window = None
        if isinstance(item, Piece):
            item, window = item.batch, Window(item.blocks, item.text)
        if isinstance(item, Batch):
            item, tokens, positions = item.activations, item.tokens, item.positions
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
        return Item(item, positions, tokens, window)

    def _kept(self, item: Item) -> Pair:
        kept = self.keep.trained(self.keep.reasons_of(item.positions, item.activations, item.tokens))
        return paired(self.layout, self.keep.clip({site: x[kept] for site, x in item.activations.items()}))

    def batches(self, start: int) -> Iterator[Pair]:
        """Kept rows regrouped into batches of the configured size; the last may be as small as half of it.

        What remains is too few for a batch, unless it is all there is: the variance about the mean of a handful of rows, by
        which the loss is divided, is far too small. A stream can be gone through once.
        """
        waiting: list[Pair] = []
        step, room = start, self.batch
        for pair in self._pairs(start):
            while len(pair.x) >= room:
                step += 1
                yield _join([*waiting, _part(pair, slice(room))])
                self._forget(step)
                pair, waiting, room = _part(pair, slice(room, None)), [], self.batch
            if len(pair.x):
                waiting.append(pair)
                room -= len(pair.x)
        if waiting and (step == 0 or 2 * room <= self.batch):
            yield _join(waiting)

    def _pairs(self, start: int) -> Iterator[Pair]:
        """The kept rows of each item from step `start` on, noting where windows begin."""
        # Not held here any longer: a copy of a stream that is held keeps all that the other copies go on to.
        items, self._items = self._items, iter(())
        passed = self._cursor.get("taken", 0)
        seen = start * self.batch - passed
        for item in items:
            pair = self._kept(item)
            if item.window and (not self._windows or item.window.blocks != self._windows[-1].blocks):
                self._windows.append(item.window._replace(rows=seen))
            seen += len(pair.x)
            yield _part(pair, slice(passed, None))
            passed -= min(passed, len(pair.x))

    def _forget(self, step: int) -> None:
        """Forget windows that no checkpoint will ask for."""
        while len(self._windows) > 1 and self._windows[1].rows <= (step - LOOKAHEAD) * self.batch:
            self._windows.popleft()

    def cursor(self, step: int) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
        """Where the batches up to `step` end, and what was fitted; nothing where the stream cannot be made anew."""
        taken = step * self.batch
        window = next((one for one in reversed(self._windows) if one.rows <= taken), None)
        if not self.source or window is None:
            return None, {}
        about = {"blocks": window.blocks, "text": window.text, "taken": taken - window.rows}
        scaling = {
            f"rows.{name}": one if isinstance(one, Tensor) else torch.tensor(one, dtype=torch.float64)
            for name, one in self.scaling._asdict().items()
        }
        fitted = {"widths": self.layout.widths, "keep": self.keep.to_dict(), "rows": self._counted}
        return {**about, **fitted}, scaling


def _column(parts: Iterable[Tensor | None]) -> Tensor | None:
    """A column of all items together, if all of them have it."""
    listed = list(parts)
    known = [part for part in listed if part is not None]
    return torch.cat(known) if len(known) == len(listed) else None


def _part(pair: Pair, rows: slice) -> Pair:
    x = pair.x[rows]
    return Pair(x, x if pair.y is pair.x else pair.y[rows])


def _join(pairs: list[Pair]) -> Pair:
    x = torch.cat([pair.x for pair in pairs])
    return Pair(x, x if all(pair.y is pair.x for pair in pairs) else torch.cat([pair.y for pair in pairs]))
