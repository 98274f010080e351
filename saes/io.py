"""Files that are whole or absent: write under a temporary name, flush to the disk, rename.

A rename within one folder is atomic on the file systems people use, so a reader sees the old file or the new one and
a killed writer leaves at most a `.tmp-*` file, which nothing here ever opens.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import UserError

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64,
          "I8": torch.int8, "I32": torch.int32, "I64": torch.int64, "U8": torch.uint8}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ALIGNED = 64  # bytes of a line of the cache


# The process has one mask for all threads, and it can only be read by setting it: so once, before there are any.
UMASK = os.umask(0)
os.umask(UMASK)


def is_temporary(name: str) -> bool:
    """Whether a killed writer left this file: one of `atomic_path`, or one that safetensors makes for itself beside it."""
    return name.startswith(".tmp-") or re.fullmatch(r"\.tmp\w{6}", name) is not None


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed and renamed to `path`, on failure removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.chmod(0o666 & ~UMASK)  # safetensors makes its files for the owner alone
        temporary.replace(path)
        _flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Flush the folder's list of names: until then a loss of power may undo a rename."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot, and need not
            raise
    finally:
        os.close(handle)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write `data` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object; UserError naming `what` was expected when the file is missing or broken."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        why = "the folder has no such file" if path.parent.is_dir() else f"the folder {path.parent} does not exist"
        raise UserError(f"expected {what} at {path}; {why}; check the path") from error
    except (OSError, ValueError) as error:
        raise _unreadable(what, str(path), error) from error
    return parse_json(text, what, str(path))


def parse_json(text: str, what: str, where: str) -> dict[str, Any]:
    """The JSON object that `text` holds; UserError naming `what` was expected at `where` when it is none."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise _unreadable(what, where, error) from error
    if not isinstance(data, dict):
        raise UserError(f"expected {what} at {where}; got JSON that is not an object; make it anew")
    return data


def _unreadable(what: str, where: str, error: Exception) -> UserError:
    return UserError(f"expected {what} at {where}; could not read it ({error}); check the path or make it anew")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically; tensors are made contiguous on the CPU."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            save_file(plain, str(temporary), metadata=dict(metadata) if metadata else None)
        except SafetensorError as error:
            raise OSError(f"could not write {path}: {error}") from error


def write_aligned(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file atomically in which every tensor of a multiple of ALIGNED bytes begins at such a multiple.

    A gather of rows from the mapped file takes a tenth longer where they do not lie on lines of the cache; the library
    aligns to 8 bytes only. Readers see padding of the header, which the format allows, and another order.
    """
    order = lambda name: (tensors[name].nbytes % ALIGNED != 0, -tensors[name].element_size(), name)  # noqa: E731
    names = sorted(tensors, key=order)
    data = {name: tensors[name].detach().cpu().contiguous() for name in names}
    header, end = {}, 0
    for name, tensor in data.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNED)
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for tensor in data.values():
            handle.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def read_tensors(path: Path, what: str) -> dict[str, Tensor]:
    """Read every tensor of a safetensors file; UserError naming `what` when it is missing, truncated or no such file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise UserError(f"expected {what} at {path}; could not read it ({error}); make it anew") from error


def map_file(path: Path) -> Tensor:
    """The bytes of a file, mapped into memory: privately, so that writing there never reaches the file, and without keeping
    it open, so that a folder may have more files than a process may open. OSError or ValueError when it cannot be.
    """
    with path.open("rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        if not size:
            raise ValueError(f"{path.name} is empty")
        # torch takes names in UTF-8 only, and a file's need not be.
        name = str(path) if str(path).isprintable() else f"/proc/self/fd/{handle.fileno()}"
        try:
            return torch.from_file(name, shared=False, size=size, dtype=torch.uint8)
        except RuntimeError as error:
            raise OSError(f"could not map {path}: {error}") from error


def map_tensors(path: Path) -> dict[str, Tensor]:
    """Memory-map the tensors of a safetensors file (private mapping: writing to one never reaches the file).

    Raises OSError or ValueError when the file is missing, truncated or no such file.
    """
    return tensors_in(map_file(path), path.name)


def tensors_in(data: Tensor, name: str) -> dict[str, Tensor]:
    """The tensors of a mapped safetensors file, without a copy; ValueError that calls it `name` when it is no such file."""
    view = data.numpy().data
    base = 8 + int.from_bytes(view[:8], "little")
    if len(view) < 8 or base > len(view):
        raise ValueError(f"{name} is not a whole safetensors file")
    try:
        header = json.loads(bytes(view[8:base]))
        header.pop("__metadata__", None)
        return {key: _view(view, entry, base) for key, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError, OverflowError) as error:
        raise ValueError(f"{name} has a damaged header: {error}") from error


def _view(data: memoryview, entry: dict[str, Any], base: int) -> Tensor:
    shape, dtype = entry["shape"], DTYPES[entry["dtype"]]
    count = int(torch.tensor(shape).prod()) if shape else 1
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype, count=count, offset=base + entry["data_offsets"][0]).view(shape)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
