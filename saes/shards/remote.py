"""A folder behind an fsspec URL: what is written is whole or absent there too, what is read is a local copy.

An object store shows an object only when all of it has arrived; elsewhere a file is uploaded under a temporary name and
renamed. What arrives, either way, must have the size of what was sent. A file that is to be mapped into memory is
downloaded into a bounded temporary folder (copies.py); what was written stays there as a copy. JSON and listings are read
anew every time, since other processes write too. Credentials are taken from the environment by the fsspec package of the
protocol (s3fs, gcsfs, …).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import UserError
from ..io import parse_json, write_aligned
from .copies import Copies
from .storage import TEMPORARY, Folder, safe_name

# Where an object is not seen before all of it has arrived, and renaming would be another copy.
WHOLE_OBJECTS = {"memory", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "hf"}


class RemoteFolder(Folder):
    """A folder behind an fsspec URL; what is read from it, and what was written to it, is kept in `copies`."""

    local = None

    def __init__(self, url: str, copies: Copies):
        self.name = re.sub(r"(://)[^/@]*@", r"\1", url)  # messages do not tell passwords
        self._url, self._copies, self.room = url, copies, copies.limit
        self._files, self._path = _file_system(url, self.name)
        protocol = self._files.protocol
        self._is_whole = not WHOLE_OBJECTS.isdisjoint([protocol] if isinstance(protocol, str) else protocol)

    def _at(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{safe_name(name)}"

    def _key(self, name: str) -> str:
        return f"{self._url.rstrip('/')}/{safe_name(name)}"

    def sizes(self) -> dict[str, int]:
        """Bytes of every file, by one listing."""
        with self._errors():
            try:
                found = self._files.ls(self._path, detail=True)
            except FileNotFoundError:
                return {}
        sizes = {one["name"].rpartition("/")[2]: one["size"] for one in found if one["type"] == "file"}
        return {name: sizes[name] for name in sorted(sizes) if name and not name.startswith(TEMPORARY)}

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        with self._errors(name):
            return self._files.isfile(self._at(name))

    def size(self, name: str) -> int:
        """Bytes of a file."""
        with self._errors(name):
            return int(self._files.info(self._at(name))["size"])

    def read_json(self, name: str, what: str) -> dict[str, Any]:
        """A JSON object, read anew every time."""
        try:
            with self._errors(name):
                data = self._files.cat_file(self._at(name))
            text = bytes(data).decode("utf-8")
        except (OSError, ValueError) as error:
            raise UserError(
                f"expected {what} at {self.at(name)}; could not read it ({error}); check the address or make it anew"
            ) from error
        return parse_json(text, what, self.at(name))

    def write_json(self, name: str, data: Mapping[str, Any]) -> None:
        """Write JSON; readers see the old file or the new one."""
        text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
        with self._upload(name) as address:
            self._files.pipe_file(address, text.encode())

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> Path | None:
        """Write a safetensors file beside the copies, and upload it; it stays as the copy that `fetch` gives."""
        size = sum(tensor.nbytes for tensor in tensors.values())
        path = self._copies.put(self._key(name), size, lambda there, _: write_aligned(there, tensors))
        try:
            with self._upload(name) as address:
                self._files.put_file(str(path), address)
                if (came := int(self._files.info(address)["size"])) != path.stat().st_size:
                    raise OSError(f"{came:,} of {path.stat().st_size:,} bytes arrived")
        except BaseException:
            self._copies.drop(self._key(name))
            raise
        return None

    def fetch(self, name: str) -> Path:
        """A copy of the file, downloaded if there is none."""
        return self._copies.get(
            self._key(name), lambda: self.size(name), lambda there, size: self._download(name, there, size)
        )

    def keeping(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Within the block the copy of the file does not go for others."""
        return self._copies.keeping(self._key(name))

    def has_copy(self, name: str) -> bool:
        """Whether the file was fetched and is still kept."""
        return self._copies.holds(self._key(name))

    def remove(self, name: str) -> None:
        """Remove a file and its copy if there is one."""
        self._copies.drop(self._key(name))
        with self._errors(name), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._at(name))

    def _download(self, name: str, there: Path, size: int) -> None:
        with self._errors(name):
            self._files.get_file(self._at(name), str(there))
            if (came := there.stat().st_size) != size:
                raise OSError(f"{came:,} of {size:,} bytes arrived")

    @contextlib.contextmanager
    def _upload(self, name: str) -> Iterator[str]:
        """Where to write so that the file is whole or absent."""
        with self._errors(name):
            if self._is_whole:
                yield self._at(name)
                return
            self._files.makedirs(self._path, exist_ok=True)
            temporary = self._at(f"{TEMPORARY}{os.getpid()}-{name}")
            try:
                yield temporary
                self._files.mv(temporary, self._at(name))
            except BaseException:
                with contextlib.suppress(Exception):
                    self._files.rm_file(temporary)
                raise

    @contextlib.contextmanager
    def _errors(self, name: str = "") -> Iterator[None]:
        """Every package has errors of its own: all are OSErrors here, which name the file."""
        try:
            yield
        except (UserError, FileNotFoundError):
            raise
        except Exception as error:
            raise OSError(f"could not reach {self.at(name)}: {type(error).__name__}: {error}") from error


def _file_system(url: str, name: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it. It must not remember listings: others write there too."""
    import fsspec

    protocol = url.partition("://")[0]
    try:
        return fsspec.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise UserError(
            f"expected the package that reads {protocol}:// for {name}; it is missing ({error}); install it with pip"
        ) from error
    except ValueError as error:
        raise UserError(
            f"expected a folder or a URL that fsspec knows; got {name} ({error}); give a path, s3://…, gs://… or another"
        ) from error
