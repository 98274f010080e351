"""Items of an iterator made ahead by a background thread, in the same order.

    for batch in prefetched(batches, ahead=2): ...

At most `ahead` items are waiting or being made. An error of the iterator comes out where its item would have. The thread
ends when the iterator is used up, closed or dropped; and before the interpreter ends, because a thread that reads mapped
memory must not outlive it.
"""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
ITEM, ERROR, END = range(3)


def prefetched(source: Iterator[T], ahead: int) -> Iterator[T]:
    """The items of `source`, `ahead` of them made in advance (0: none, without a thread)."""
    if not ahead:
        yield from source
        return
    worker = _Worker(source, ahead)
    try:
        while True:
            kind, item = worker.made.get()
            worker.room.release()
            if kind == END:
                return
            if kind == ERROR:
                raise item
            yield item
            del item  # an item that the caller is done with must not wait here for the next
    finally:
        worker.end()


class _Worker:
    def __init__(self, source: Iterator[Any], ahead: int):
        self.made: SimpleQueue[tuple[int, Any]] = SimpleQueue()
        self.room = threading.Semaphore(ahead)
        self._source, self._is_ending = source, False
        self._thread = threading.Thread(target=self._run, name="unweave-prefetch", daemon=True)
        _WORKERS.add(self)
        self._thread.start()

    def _run(self) -> None:
        try:
            while self.room.acquire() and not self._is_ending:
                try:
                    item = next(self._source)
                except StopIteration:
                    return self.made.put((END, None))
                self.made.put((ITEM, item))
                del item
        except BaseException as error:  # the consumer raises it
            self.made.put((ERROR, error))
        finally:
            if close := getattr(self._source, "close", None):
                close()

    def end(self) -> None:
        """Let the thread finish what it is making, and wait for it."""
        self._is_ending = True
        self.room.release()
        self._thread.join()
        _WORKERS.discard(self)


_WORKERS: weakref.WeakSet[_Worker] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    for worker in list(_WORKERS):
        worker.end()
