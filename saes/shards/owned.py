"""A Shards folder has one writer, and its manifest always describes exactly the shards that are whole.

A local folder is locked (lock.py): the lock ends with its process, so nothing has to be unlocked by hand. Behind a URL there
are no locks: the manifest holds the `owner`, a random token that whoever begins or resumes puts there, and that is looked at
before the manifest is renewed. Of two writers the one that came first is the one that stops.
"""

from __future__ import annotations

import errno
import shutil
import uuid
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..io import is_temporary
from ..runs.lock import FolderLock
from .storage import Folder

MANIFEST = "manifest.json"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Owned:
    """A folder that this process writes to, from `claim` until `release`."""

    def __init__(self, folder: Folder):
        self.folder = folder
        self._lock: FolderLock | None = None
        self.token = uuid.uuid4().hex

    def claim(self) -> None:
        """Take the folder; UserError where another process is writing to it, or it cannot be made."""
        if self.folder.local is not None:
            try:
                self.folder.local.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise explained(error, self.folder) from error
            self._lock = FolderLock(self.folder.local)

    def sweep(self) -> None:
        """Remove what killed processes left half written; to be called by the one that has claimed the folder."""
        if self.folder.local is not None:
            for path in self.folder.local.iterdir():
                if is_temporary(path.name):
                    path.unlink(missing_ok=True)

    def save(self, manifest: dict[str, Any]) -> None:
        """Renew the manifest, atomically; UserError where there is no room, or another writer has taken the folder."""
        manifest = {key: value for key, value in manifest.items() if key != "owner"}
        if self.folder.local is None and not manifest["finished"]:
            manifest["owner"] = self.token
        try:
            self.folder.write_json(MANIFEST, manifest)
        except OSError as error:
            raise explained(error, self.folder) from error

    def check(self) -> None:
        """UserError where another writer has taken the folder behind a URL."""
        if self.folder.local is None and self.read().get("owner") != self.token:
            raise UserError(
                f"expected to be the only writer of {self.folder}; another one resumed it meanwhile; leave it to that one"
            )

    def read(self) -> dict[str, Any]:
        """The manifest as it is stored, an empty one where there is none."""
        if not self.folder.exists(MANIFEST):
            return {}
        return self.folder.read_json(MANIFEST, "a manifest")

    def release(self) -> None:
        """Let others write."""
        if self._lock is not None:
            self._lock.release()


def explained(error: OSError, folder: Folder, size: int = 0) -> UserError:
    """What kept `size` bytes from being written, where, and what to do about it."""
    wanted = f"room for {size / 2**20:.0f} MiB in {folder}" if size else f"to write to {folder}"
    where = "" if folder.local is None else f" ({_free(folder.local)})"
    is_full = error.errno in FULL or any(sign in str(error).lower() for sign in ("no space", "too large", "quota"))
    remedy = "make room" if is_full else "check the path, its permissions and the disk"
    return UserError(
        f"expected {wanted}; got: {error}{where}; {remedy}, then go on with --resume: nothing written is lost"
    )


def _free(path: Path) -> str:
    while not path.exists() and path != path.parent:
        path = path.parent
    return f"{shutil.disk_usage(path).free / 2**20:,.0f} MiB free on the disk of {path}"
