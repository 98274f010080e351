"""Activations straight from the model, never on disk: forward passes feed a training run, or all the runs of a sweep.

    train(config, stream(model, texts, ["blocks.4.hook_resid_post"]), "sae")

A thread of its own makes them while the trainer takes them, one window ahead: forward passes until there are `buffer` tokens,
whose rows are then mixed by a permutation drawn from the seed. So two windows are in memory at most, what is mixed depends on
`buffer` alone, and nothing on which thread is faster. Rows further apart than a window stay in the order of the text: give
documents in random order, or use Shards, which are mixed as a whole.

Text that can be gone through again (a list, or a callable that gives a fresh iterator) makes a stream that can be resumed: the
blocks before a window are passed over by tokenising alone, and a window begins with a forward pass, so it comes out the same.
"""

from __future__ import annotations

import hashlib
import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .capture import capture
from .errors import UserError
from .models import model_info, special_ids
from .plain_modules import as_model
from .shards.folder import Batch
from .sites import resolve_site
from .text import Block, pad_blocks, token_blocks

PIECE = 4096  # rows that are copied out of a window at a time
COLUMNS = ("tokens", "positions", "documents")


class Piece(NamedTuple):
    """Rows of a window: the blocks of text before the window, and a checksum of the text up to its end."""

    batch: Batch
    blocks: int
    text: str


class Window(NamedTuple):
    """The rows of a window by column, and the blocks and text as in Piece."""

    rows: dict[str, Tensor]
    blocks: int
    text: str


class Stream:
    """An iterable of Batches; `about` is the provenance that a dictionary trained on it gets.

    `source` says what it is made of, for a checkpoint; it is empty if the text can be gone through only once. `special` are the
    ids of the model's special tokens.
    """

    def __init__(
        self,
        model: Any,
        texts: Iterable[Any] | Callable[[], Iterable[Any]],
        sites: Mapping[str, str],
        context: int,
        batch: int,
        buffer: int,
        seed: int,
    ):  # fmt: skip
        self._model, self._texts, self._sites = model, texts, sites
        self.context, self.batch, self.buffer, self.seed = context, batch, buffer, seed
        info = model_info(model).dict()
        self.special = tuple(special_ids(model))
        mixed = {"batch": batch, "buffer": buffer, "seed": seed}
        self.about = {"model": info, "context": context, "stream": mixed}
        is_repeatable = callable(texts) or not isinstance(texts, Iterator)
        self.source = {"stream": {"model": info["fingerprint"], "context": context, **mixed}} if is_repeatable else {}

    def __iter__(self) -> Iterator[Batch]:
        return (piece.batch for piece in self.since(0))

    def since(self, blocks: int) -> Iterator[Piece]:
        """The pieces of the windows from the one on that begins after so many blocks; the thread ends with the iterator."""
        producer = Producer(self._windows, blocks)
        try:
            while (window := producer.next()) is not None:
                yield from self._pieces(window)
                del window
        finally:
            producer.stop()

    def _pieces(self, window: Window) -> Iterator[Piece]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + window.blocks) % 2**63)
        order = torch.randperm(len(window.rows["tokens"]), generator=generator)
        for index in order.split(PIECE):
            rows = {name: column[index] for name, column in window.rows.items()}
            columns = [rows.pop(name) for name in COLUMNS]
            yield Piece(Batch(rows, *columns), window.blocks, window.text)

    def _windows(self, blocks: int, goes_on: Callable[[], bool]) -> Iterator[Window]:
        """The windows from the one on that begins after so many blocks, until `goes_on` says no."""
        texts = self._texts() if callable(self._texts) else self._texts
        texts = [texts] if isinstance(texts, str) else texts
        text = hashlib.blake2b(digest_size=16)
        source = noted(token_blocks(self._model, texts, self.context), text.update)
        begun = sum(1 for _ in itertools.islice(source, blocks))
        while begun == blocks and goes_on():
            rows, count = self._window(source, goes_on)
            if not count:
                return
            yield Window(rows, blocks, text.hexdigest())
            del rows
            blocks, begun = blocks + count, begun + count

    def _window(self, source: Iterator[Block], goes_on: Callable[[], bool]) -> tuple[dict[str, Tensor], int]:
        """Forward passes until there are `buffer` rows: the rows by column, and how many blocks they are of."""
        most = self.buffer + self.batch * self.context
        columns, count, filled = dict[str, Tensor](), 0, 0
        while filled < self.buffer and goes_on() and (some := list(itertools.islice(source, self.batch))):
            padded = pad_blocks(some)
            found = capture(self._model, padded, list(dict.fromkeys(self._sites.values())))
            parts = {name: found[site] for name, site in self._sites.items()}
            parts |= dict(zip(COLUMNS, padded.rows(), strict=True))
            end = filled + len(parts["tokens"])
            for name, part in parts.items():
                columns.setdefault(name, part.new_empty(most, *part.shape[1:]))[filled:end] = part
            count, filled = count + len(some), end
        return {name: column[:filled] for name, column in columns.items()}, count


def noted(blocks: Iterator[Block], update: Callable[[bytes], None]) -> Iterator[Block]:
    """The same blocks, their tokens told to `update`."""
    for block in blocks:
        update(block.tokens.numpy().tobytes())
        yield block


class Producer:
    """Windows made by a thread, one while another is in use: `next` gives the next one, or None at the end of the text."""

    def __init__(self, windows: Callable[[int, Callable[[], bool]], Iterator[Window]], blocks: int):
        self._made = queue.SimpleQueue[Window | BaseException | None]()
        self._room = threading.Semaphore(1)  # for another window than the one in use
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(windows, blocks), name="stream", daemon=True)
        self._thread.start()

    def _run(self, windows: Callable[[int, Callable[[], bool]], Iterator[Window]], blocks: int) -> None:
        try:
            made = windows(blocks, lambda: not self._stopped.is_set())
            while not self._stopped.is_set():
                self._room.acquire()
                self._made.put(window := next(made, None))
                if window is None:
                    return
                del window
        except BaseException as error:  # which `next` raises, in the trainer's thread
            self._made.put(error)

    def next(self) -> Window | None:
        """The next window; an error of the thread comes out here. The window before it must not be in use any more."""
        made = self._made.get()
        if isinstance(made, BaseException):
            raise made
        self._room.release()
        return made

    def stop(self) -> None:
        """End the thread, after the forward pass that it is in."""
        self._stopped.set()
        self._room.release()
        if threading.current_thread() is not self._thread:
            self._thread.join()


def stream(
    model: Any,
    texts: Iterable[Any] | Callable[[], Iterable[Any]],
    sites: Iterable[str],
    *,
    context: int = 128,
    batch: int = 8,
    buffer: int = 65_536,
    seed: int = 0,
    tokenizer: Any = None,
) -> Stream:
    """Activations of `sites` on texts (strings, or things with a `.text`), `batch` blocks of `context` tokens a forward pass.

    `model` is a TransformerBridge, or a plain module with its `tokenizer` (plain_modules.py).
    `texts` is a list, or a callable that gives a fresh iterator, for a run that can be resumed; any iterable otherwise. Rows are
    mixed within windows of `buffer` tokens, in an order drawn from `seed`; twice as many are in memory at most. The model
    must not be used for anything else meanwhile. The sites are called what they are called here.
    UserError for a site that the model lacks, and for non-finite activations.
    """
    model = as_model(model, tokenizer)
    named = {site: resolve_site(model, site) for site in sites}
    if not named or batch < 1 or buffer < 1:
        raise UserError(
            f"expected at least one site, one block a batch and one token to mix; got {len(named)}, {batch} and {buffer}"
        )
    return Stream(model, texts, named, context, batch, buffer, seed)
