"""One heavy job at a time: whoever comes first goes first, and not more than a few wait.

A model's hooks are global to it, and two jobs on one CPU are slower than one after the other. `with turns:` waits for its turn; when
`waiting` others wait already it raises Busy at once, so that a page that asks again and again does not pile up work.
A stream takes a turn for every token (`with turns.next():`), so others come in between and a reader who has stopped
reading holds nothing back.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from ..saes.errors import UserError


class Busy(UserError):
    """Too many wait already: nothing was done, and asking again in a while may."""


class Turns:
    """A fair lock with a bounded queue. Not re-entrant; it may be left from another thread than it was entered from."""

    def __init__(self, waiting: int = 8):
        self.waiting = waiting
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()  # the first has the turn

    def __enter__(self) -> Turns:
        self._enter(is_bounded=True)
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._queue.popleft()
            self._changed.notify_all()

    @contextmanager
    def next(self) -> Iterator[None]:
        """A turn for somebody who was let in before: waits, and is never sent away."""
        self._enter(is_bounded=False)
        try:
            yield
        finally:
            self.__exit__()

    def _enter(self, is_bounded: bool) -> None:
        mine = object()
        with self._changed:
            if is_bounded and len(self._queue) > self.waiting:
                raise Busy(
                    f"busy: expected at most {self.waiting} jobs to wait for the model; so many do; try again in a while"
                )
            self._queue.append(mine)
            try:
                while self._queue[0] is not mine:
                    self._changed.wait()
            except BaseException:
                self._queue.remove(mine)
                self._changed.notify_all()
                raise
