"""Write Shards so that the manifest on disk always describes exactly the shards that are whole.

Rows are handed over batch by batch; a thread of its own (background.py) checks them, puts them into the columns of the shard
under way (columns.py), and writes, flushes and hashes the shard when it is full. Only then is it entered in the manifest.
What a killed run leaves is a valid, unfinished folder; `ShardWriter(resume=True)` continues it after checking that model,
BOS rule, dtype, context, target and text are those it was begun with (resuming.py). One writer a folder (owned.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import UserError
from ..models import ModelInfo
from ..text import Block, PackedBlocks, PaddedBlocks
from .background import Background
from .columns import Columns, encoded
from .manifest import FORMAT, VERSION, fingerprint, norm_column
from .owned import Owned, explained
from .resuming import continued, digests, skip_written, tokens_digest
from .statistics import write_statistics
from .storage import open_folder

ENTRY = "entry-"  # files of shards that a process of several has written and none has entered yet (split.py)
AHEAD = 64 * 2**20  # bytes of activations that may wait for the thread
RULES = {
    False: "one BOS at position 0 of each block where the model has one; no others added",
    True: "one BOS at position 0 of each block where the model has one; no others added; blocks packed, none sees another",
}


class Part(NamedTuple):
    """The rows of one batch on their way to the thread, and the number of their shard."""

    rows: dict[str, Tensor]
    columns: dict[str, Tensor]
    blocks: int
    wait: Callable[[], None]
    shard: int


class Full(NamedTuple):
    """Tells the thread that a shard is complete, and what its text is."""

    about: dict[str, Any] | None


class ShardWriter:
    """Appends rows to a folder (a path or URL) of at most `target` rows; `rows` counts what was handed over, on disk or not yet.

    `about_text` gives the manifest's `text` from the number of the last document, `special` are ids of special tokens,
    `packed` says how blocks were read, `statistics` asks for those of statistics.py. Errors of the thread are raised at
    the next `add` or at `finish`.
    """

    def __init__(
        self, folder: str | Path, model: ModelInfo, sites: list[str], dtype: torch.dtype, target: int, context: int,
        shard_mib: int, resume: bool, about_text: Callable[[int], dict[str, Any]] | None = None, *,
        special: Sequence[int] = (), packed: bool = False, statistics: bool = False,
    ):  # fmt: skip
        self.folder, self.sites, self.dtype, self.limit = open_folder(folder), sites, dtype, shard_mib * 2**20
        self._about_text = about_text
        self.manifest: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "model": model.dict(),
            "text": None,
            "special_tokens": RULES[packed],
            "special": list(special),
            "packed": packed,
            "context": context,
            "dtype": str(dtype).removeprefix("torch."),
            "sites": [],
            "target_rows": target,
            "rows": 0,
            "shards": [],
            "finished": False,
            "fingerprint": "",
        }
        self._owned = Owned(self.folder)
        self._thread = Background(self._take, AHEAD)
        self._columns, self._blocks, self._bytes, self._shard = Columns(), 0, 0, 0
        self._last_document, self._about = 0, self.manifest["text"]
        self._statistics = statistics
        self._begin(resume)
        self.rows: int = self.manifest["rows"]
        self._next = len(self.manifest["shards"])

    def _begin(self, resume: bool) -> None:
        """Take the folder as it is, or go on with what an earlier run left; a finished one is only looked at."""
        if resume and (old := self._owned.read()).get("finished"):
            self.manifest = continued(self.folder, old, self.manifest, self.sites)
            if self.manifest["finished"]:
                return
        self._owned.claim()
        try:
            old = self._owned.read()
            if old.get("format") == FORMAT:
                self._owned.sweep()
            if old.get("format") == FORMAT and not old.get("shards"):
                self._forget_entries()  # a run that ended before its first shard left nothing to keep
            elif resume and old:
                self.manifest = continued(self.folder, old, self.manifest, self.sites)
            elif self.folder.names():
                raise UserError(
                    f"expected an empty folder for Shards; {self.folder} has files; give --resume or another folder"
                )
            self._owned.save(self.manifest)
        except BaseException:
            self._owned.release()
            raise

    @property
    def is_finished(self) -> bool:
        """Whether the folder is complete: nothing is left to add."""
        return self.manifest["finished"]

    def skip_written(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """Pass over the blocks that are on disk, after comparing their tokens with what is there."""
        return skip_written(self.folder, self.manifest["shards"], blocks)

    def share(self, batches: Iterator[list[Block]]) -> Iterator[list[Block]]:
        """The batches that are to be added here, until the target is reached."""
        while self.rows < self.manifest["target_rows"] and (some := next(batches, None)):
            yield some

    def set_widths(self, widths: Mapping[str, int]) -> None:
        """Say how wide the sites are, where it has to be known before the first `add`."""
        self.manifest["sites"] = [{"name": site, "width": widths[site]} for site in self.sites]

    def add(
        self,
        activations: dict[str, Tensor],
        blocks: PaddedBlocks | PackedBlocks,
        wait: Callable[[], None] = lambda: None,
    ) -> None:
        """Append the rows of one forward pass, cut at the target; once they fill a shard it is written.

        They are read later, by the thread, once `wait` has returned there: leave them as they are.
        """
        room = self.manifest["target_rows"] - self.rows
        tokens, positions, documents = (column[:room].int() for column in blocks.rows())
        rows = {site: activations[site][:room] for site in self.sites}
        if not self.manifest["sites"]:
            self.set_widths({site: value.shape[1] for site, value in rows.items()})
        columns = {"tokens": tokens, "positions": positions, "documents": documents}
        size = sum(value.nbytes for value in rows.values())
        self._thread.put(Part(rows, columns, blocks.number, wait, self._next), size)
        self.rows += len(tokens)
        self._last_document = int(documents[-1]) if len(documents) else self._last_document
        self._bytes += len(tokens) * self.row_bytes()
        if self._bytes >= self.limit:
            self._close_shard()

    def _close_shard(self) -> None:
        """Have what was added since the last shard written as one; nothing is, where nothing was."""
        if self._bytes:
            self._thread.put(Full(self._about_text(self._last_document) if self._about_text else None), 0)
            self._bytes = 0
            self._next += 1

    def row_bytes(self) -> int:
        """Bytes of a row in a shard: its token, position and document, and of each site the values, the norm and an int8's scale."""
        each = 8 if self.dtype == torch.int8 else 4
        return 12 + sum(site["width"] * self.dtype.itemsize + each for site in self.manifest["sites"])

    def _take(self, item: Part | Full) -> None:
        """The thread's work."""
        if isinstance(item, Full):
            self._about = item.about
            self._flush()
            return
        item.wait()
        columns = item.columns
        for site in self.sites:
            columns |= encoded(site, item.rows[site], self.dtype, norm_column(self.manifest, site))
        self._columns.append(columns, dict.fromkeys(self.sites, self.dtype))
        self._blocks += item.blocks
        self._shard = item.shard

    def _flush(self) -> None:
        """Write the shard under way, then enter it in the manifest."""
        tensors = self._columns.tensors()
        name = f"shard-{self._shard:05d}.safetensors"
        self._owned.check()
        try:
            self.folder.write_tensors(name, tensors)
            path = self.folder.fetch(name)
            entry = {"file": name, "rows": self._columns.rows, "blocks": self._blocks, "bytes": path.stat().st_size}
            entry |= {**digests(path), "tokens": tokens_digest(tensors["tokens"])}
        except OSError as error:
            raise explained(error, self.folder, sum(tensor.nbytes for tensor in tensors.values())) from error
        last = int(tensors["documents"][-1])
        self._columns.clear()
        self._blocks = 0
        self._enter(entry, last)

    def _enter(self, entry: dict[str, Any], last_document: int) -> None:
        """A shard is written: renew the manifest with its entry."""
        self._owned.save(self._with(entry, self._about))

    def _with(self, entry: dict[str, Any], about: dict[str, Any] | None) -> dict[str, Any]:
        """The manifest, with one more shard."""
        shards = [*self.manifest["shards"], entry]
        self.manifest |= {"shards": shards, "rows": self.manifest["rows"] + entry["rows"], "text": about}
        return self.manifest

    def finish(self) -> None:
        """Write what is left and mark the folder as finished; UserError when there was no row at all."""
        self._close_shard()
        self._thread.drain()
        self._complete()
        self.close()

    def _complete(self) -> None:
        """All shards are entered: statistics, then the last renewal of the manifest."""
        if not self.manifest["rows"]:
            raise UserError("expected text of at least one token; got empty text; give some text")
        if self._statistics:
            self.manifest["statistics"] = write_statistics(self.folder, self.manifest)
        self.manifest |= {"finished": True, "fingerprint": fingerprint(self.manifest["shards"])}
        self._owned.save(self.manifest)
        self._forget_entries()

    def _forget_entries(self) -> None:
        for name in self.folder.names():
            if name.startswith(ENTRY):
                self.folder.remove(name)

    def stop(self) -> None:
        """Write the shards that are full, leave the one under way, and let the folder go: it can be resumed."""
        self._thread.drain()
        self.close()

    def close(self) -> None:
        """End the thread after what it is doing, and let the folder go; nothing else is written."""
        self._thread.close()
        self._owned.release()
