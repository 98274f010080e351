"""One writer a folder: a lock that the system itself lifts when its holder ends, however it ends.

The folder is locked, not a file in it (flock), so nothing is left behind and nothing is stale. Where a file system knows no such
locks (some network ones), there is none.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ..errors import UserError


class FolderLock:
    """Held from the moment it is made until `release`, or until it is forgotten; UserError where another holds it."""

    def __init__(self, folder: Path):
        self._handle: int | None = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.release()
            raise UserError(
                f"expected {folder} to be free; another process is writing there; wait for it, or use a new --out"
            ) from error
        except OSError:
            self.release()

    def release(self) -> None:
        """Let others have the folder."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    __del__ = release
