"""Encoded answers that are slow to make, kept by path within a bound of bytes.

Whatever changes something here calls `clear`. An answer that was begun before that and is ready after it is given to whoever asked, and
not kept: it may be out of date.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

Encoded = tuple[str | bytes, str]
MOST = 64 << 20  # bytes of all that is kept


class Kept:
    """`kept(path)` is `make(path)`, remembered; the path asked for longest ago goes first. Errors are not remembered."""

    def __init__(self, make: Callable[[str], Encoded], most: int = MOST):
        self.make, self.most = make, most
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Encoded] = OrderedDict()
        self._size = self._cleared = 0

    def __call__(self, path: str) -> Encoded:
        with self._lock:
            begun = self._cleared
            if path in self._known:
                self._known.move_to_end(path)
                return self._known[path]
        made = self.make(path)
        with self._lock:
            if begun == self._cleared and path not in self._known and len(made[0]) <= self.most:
                self._known[path] = made
                self._size += len(made[0])
                while self._size > self.most:
                    _, gone = self._known.popitem(last=False)
                    self._size -= len(gone[0])
        return made

    def clear(self) -> None:
        """Forget everything, and what is being made now too."""
        with self._lock:
            self._known.clear()
            self._size, self._cleared = 0, self._cleared + 1
