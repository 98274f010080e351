"""Work that the caller does not wait for: one thread, in order, a bounded number of bytes ahead.

An error of the work ends the thread and is raised in the caller, at the next `put` and at every `drain` after it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any


class Background:
    """Calls `work(item)` for each item put, in a thread of its own; `put` waits while more than `room` bytes would be waiting."""

    def __init__(self, work: Callable[[Any], None], room: int):
        self._work, self._room = work, room
        self._waiting: deque[tuple[Any, int]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def put(self, item: Any, size: int) -> None:
        """Have `item` of `size` bytes worked on; one is always taken, however large."""
        with self._changed:
            self._changed.wait_for(lambda: self._error or not self._waiting or self._bytes + size <= self._room)
            self._raise()
            self._waiting.append((item, size))
            self._bytes += size
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="unweave-writer", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def drain(self) -> None:
        """Wait until everything put so far is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._error or not self._waiting)
            self._raise()

    def close(self) -> None:
        """End the thread after the item under way; what waits is dropped, and no error is raised."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or self._waiting)
                if self._is_closed:
                    return
                item, size = self._waiting[0]  # it stays there while it is worked on, so that `drain` waits for it
            try:
                self._work(item)
            except BaseException as error:  # whatever it is belongs to the caller
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._waiting.popleft()
                self._bytes -= size
                self._changed.notify_all()
            del item
