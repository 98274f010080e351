"""Local copies of remote files, in a bounded temporary folder.

A file is downloaded under a temporary name, its size compared with the remote one, then renamed. When the copies outgrow
the limit, the one that was used longest ago goes (a copy that is memory-mapped keeps its bytes until the map is dropped).
The folder is removed when the process ends. A killed process cannot do that: each folder is locked by its process, and
whoever makes a new one removes those beside it that nobody locks.

    UNWEAVE_COPIES_GIB   the limit in GiB, 16 if not given
    TMPDIR               where the folder is made
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

from ..errors import UserError

PREFIX = "unweave-copies-"
DEFAULT_GIB = 16.0


class Copies:
    """Files by a key (their address), at most `limit` bytes of them; one file may be larger and is then alone."""

    def __init__(self, limit: int):
        self.limit = limit
        self._sizes: OrderedDict[str, int] = OrderedDict()  # the one used longest ago comes first
        self._coming = 0  # bytes that are being written
        self._lock = threading.Lock()
        self._busy: dict[str, threading.Lock] = {}
        self._kept = Counter[str]()  # keys that may not go now

    @cached_property
    def folder(self) -> Path:
        """Made at the first use, removed at exit."""
        remove_abandoned(Path(tempfile.gettempdir()))
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._held = _locked(folder)
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder

    def path(self, key: str) -> Path:
        """Where the copy of `key` is or would be."""
        import hashlib

        return self.folder / f"{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}-{key.rpartition('/')[2]}"

    def holds(self, key: str) -> bool:
        """Whether there is a copy now."""
        with self._lock:
            return key in self._sizes

    def get(self, key: str, size: Callable[[], int], make: Callable[[Path, int], None]) -> Path:
        """The copy of `key`. Where there is none, room is made for `size()` bytes, and `make` writes it to the path that it is
        given, along with the size. Safe to call from threads.
        """
        with self._lock:
            busy = self._busy.setdefault(key, threading.Lock())
        with busy:  # two threads that want the same file download it once
            if not self._used(key):
                self._put(key, size(), make)
            return self.path(key)

    def put(self, key: str, size: int, make: Callable[[Path, int], None]) -> Path:
        """Like `get`, in place of the copy that there may be."""
        self.drop(key)
        return self.get(key, lambda: size, make)

    @contextlib.contextmanager
    def keeping(self, key: str) -> Iterator[None]:
        """Within the block the copy of `key` does not go for others."""
        with self._lock:
            self._kept[key] += 1
        try:
            yield
        finally:
            with self._lock:
                self._kept[key] -= 1
                self._make_room()

    def drop(self, key: str) -> None:
        """Remove the copy of `key`, if there is one."""
        with self._lock:
            if self._sizes.pop(key, None) is not None:
                self.path(key).unlink(missing_ok=True)

    def _used(self, key: str) -> bool:
        with self._lock:
            if key in self._sizes:
                self._sizes.move_to_end(key)
            return key in self._sizes

    def _put(self, key: str, size: int, make: Callable[[Path, int], None]) -> None:
        path = self.path(key)
        temporary = path.with_name(f".tmp-{threading.get_ident()}-{path.name}")
        with self._lock:
            self._coming += size
            self._make_room()
        try:
            make(temporary, size)
            temporary.replace(path)
            with self._lock:
                self._sizes[key] = path.stat().st_size
        finally:
            temporary.unlink(missing_ok=True)
            with self._lock:
                self._coming -= size
                self._make_room()

    def _make_room(self) -> None:
        """Let go the copies that were used longest ago; what is on its way counts, and the last copy stays."""
        for oldest in [key for key in self._sizes if not self._kept[key]]:
            if sum(self._sizes.values()) + self._coming <= self.limit or len(self._sizes) == (self._coming == 0):
                break
            del self._sizes[oldest]
            self.path(oldest).unlink(missing_ok=True)


def _locked(folder: Path) -> int | None:
    """Lock the folder for as long as this process lives; None when another one holds it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def remove_abandoned(parent: Path) -> None:
    """Remove the folders of copies in `parent` whose process is gone."""
    for folder in parent.glob(PREFIX + "*"):
        try:
            handle = _locked(folder)
        except OSError:
            continue  # another user's, or gone in between
        if handle is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)


def limit_from_environment() -> int:
    """Bytes of copies that are kept; UserError when UNWEAVE_COPIES_GIB is not a positive number."""
    given = os.environ.get("UNWEAVE_COPIES_GIB", "").strip()
    try:
        gib = float(given or DEFAULT_GIB)
    except ValueError:
        gib = 0.0
    if not 0 < gib < float("inf"):
        raise UserError(f"expected UNWEAVE_COPIES_GIB to be a positive number of GiB; got {given!r}; correct it")
    return int(gib * 2**30)
