"""Caching split over processes: under torchrun each computes its own shards, and the folder is that of one process.

Every process goes through the text. Which blocks a shard holds follows from row counts alone, so all agree without talking;
shard s is computed by process s mod W. A written shard is told by a small file beside it, and the first process, once it has
passed that place in the text, enters it in the manifest in order. Whoever is killed leaves whole shards and their files
behind: a resumed run takes them as they are, whatever its number of processes.

Processes talk (over gloo, whatever else they use) only when they begin and when they end. Where one ends early the others
stop with an error once they wait for it; torchrun stops them at once.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from ..errors import UserError
from ..text import Block
from .resuming import is_whole, tokens_digest
from .writer import ENTRY, ShardWriter

PATIENCE = datetime.timedelta(days=30)  # a process may wait this long for another that is alive


class Planned(NamedTuple):
    """A shard by the row counts of its blocks: its number, its batches, and its rows."""

    number: int
    batches: list[list[Block]]
    rows: int


class Processes:
    """This process among `world`, which talk over `group`; `rank` 0 is the first."""

    def __init__(self, rank: int, world: int, group: Any = None, is_own: bool = False):
        self.rank, self.world, self._group, self._is_own = rank, world, group, is_own

    @staticmethod
    def here() -> Processes:
        """As torch.distributed says, or the environment that torchrun makes; else a process alone."""
        if dist.is_available() and dist.is_initialized():
            if dist.get_world_size() == 1:
                return Processes(0, 1)
            return Processes(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo", timeout=PATIENCE))
        if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
            return Processes(0, 1)
        if not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            raise UserError("expected MASTER_ADDR and MASTER_PORT beside RANK and WORLD_SIZE; start it with torchrun")
        dist.init_process_group("gloo", timeout=PATIENCE)
        return Processes(dist.get_rank(), dist.get_world_size(), dist.group.WORLD, is_own=True)

    def writer(self, *arguments: Any, **options: Any) -> ShardWriter:
        """A ShardWriter, or one of several on the same folder."""
        return ShardWriter(*arguments, **options) if self.world == 1 else SharedWriter(self, *arguments, **options)

    def from_first(self, call: Callable[[], Any]) -> Any:
        """What `call` gives in the first process, in all of them; its UserError too."""
        box: list[Any] = [None, None]
        if self.rank == 0:
            try:
                box[0] = call()
            except UserError as error:
                box[1] = str(error)
        self._talk(lambda: dist.broadcast_object_list(box, group_src=0, group=self._group))
        if box[1] is not None:
            raise UserError(box[1])
        return box[0]

    def meet(self) -> None:
        """Wait for all; UserError where one has ended."""
        self._talk(lambda: dist.barrier(self._group))

    def _talk(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except RuntimeError as error:
            reason = str(error).strip().split("\n")[0][:200]
            raise UserError(
                f"expected {self.world} processes until the end; another one ended ({reason}); go on with --resume"
            ) from error

    def leave(self) -> None:
        """End what `here` began."""
        if self._is_own:
            dist.destroy_process_group()
        elif self._group is not None:
            dist.destroy_process_group(self._group)


class SharedWriter(ShardWriter):
    """A ShardWriter of one process among several."""

    def __init__(self, processes: Processes, *arguments: Any, **options: Any):
        self._processes, self._last = processes, -1
        super().__init__(*arguments, **options)

    def _begin(self, resume: bool) -> None:
        begin = super()._begin

        def first() -> tuple[dict[str, Any], str]:
            begin(resume)
            return self.manifest, self._owned.token

        self.manifest, self._owned.token = self._processes.from_first(first)

    def share(self, batches: Iterator[list[Block]]) -> Iterator[list[Block]]:
        """The batches of this process's shards, but for those that an earlier run has written."""
        for shard in self._planned(batches):
            self._last = shard.number
            is_mine = shard.number % self._processes.world == self._processes.rank
            if is_mine and not self._is_written(shard):
                self._next = shard.number
                yield from shard.batches
                self._close_shard()
            else:
                self.rows += shard.rows
            if self._processes.rank == 0:
                self._enter_written(shard.number)

    def _planned(self, batches: Iterator[list[Block]]) -> Iterator[Planned]:
        number, some, rows = len(self.manifest["shards"]), [], 0
        room = self.manifest["target_rows"] - self.manifest["rows"]
        while room > 0 and (batch := next(batches, None)):
            count = min(room, sum(len(block.tokens) for block in batch))
            some.append(batch)
            rows, room = rows + count, room - count
            if rows * self.row_bytes() >= self.limit:
                yield Planned(number, some, rows)
                number, some, rows = number + 1, [], 0
        if some:
            yield Planned(number, some, rows)

    def _is_written(self, shard: Planned) -> bool:
        name = _entry_name(shard.number)
        if not self.folder.exists(name):
            return False
        entry = self.folder.read_json(name, "the entry of a shard")["entry"]
        tokens = torch.cat([block.tokens for batch in shard.batches for block in batch])[: shard.rows]
        blocks = sum(map(len, shard.batches))
        same = (entry["rows"], entry["blocks"], entry["tokens"]) == (shard.rows, blocks, tokens_digest(tokens))
        return same and is_whole(self.folder, entry)

    def _enter(self, entry: dict[str, Any], last_document: int) -> None:
        """A shard is written: say so beside it."""
        self.folder.write_json(_entry_name(self._shard), {"entry": entry, "last_document": last_document})

    def _enter_written(self, until: int) -> None:
        """Enter in the manifest, in order, the shards up to `until` that are written."""
        entered = []
        while (number := len(self.manifest["shards"])) <= until and self.folder.exists(_entry_name(number)):
            said = self.folder.read_json(_entry_name(number), "the entry of a shard")
            self._with(said["entry"], self._about_text(said["last_document"]) if self._about_text else None)
            entered.append(number)
        if entered:
            self._owned.save(self.manifest)
        for number in entered:
            self.folder.remove(_entry_name(number))

    def finish(self) -> None:
        """Write what is left; once all have, the first process marks the folder as finished."""
        self._thread.drain()
        self._processes.meet()

        def last() -> None:
            self._enter_written(self._last)
            if len(self.manifest["shards"]) <= self._last:
                number = len(self.manifest["shards"])
                raise UserError(f"expected shard {number} of {self.folder}; nobody wrote it; go on with --resume")
            self._complete()

        self._processes.from_first(last)
        self._processes.meet()
        self.close()


def _entry_name(number: int) -> str:
    return f"{ENTRY}{number:05d}.json"
