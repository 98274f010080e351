"""Files that are whole or absent: write under a temporary name, flush to the disk, rename.

A rename within one folder is atomic on the file systems people use, so a reader sees the old file or the new one and
a killed writer leaves at most a `.tmp-*` file, which nothing here ever opens.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import UserError

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64,
          "I32": torch.int32, "I64": torch.int64, "U8": torch.uint8}  # fmt: skip


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed and renamed to `path`, on failure removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # safetensors makes its files for the owner alone
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write `data` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object; UserError naming `what` was expected when the file is missing or broken."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"expected {what} at {path}; could not read it ({error}); check the path or make it anew"
        ) from error
    if not isinstance(data, dict):
        raise UserError(f"expected {what} at {path}; got JSON that is not an object; make it anew")
    return data


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


def read_tensors(path: Path, what: str) -> dict[str, Tensor]:
    """Read every tensor of a safetensors file; UserError naming `what` when it is missing, truncated or no such file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise UserError(f"expected {what} at {path}; could not read it ({error}); make it anew") from error


def map_tensors(path: Path) -> dict[str, Tensor]:
    """Memory-map the tensors of a safetensors file (private mapping: writing to one never reaches the file).

    Raises OSError or ValueError when the file is missing, truncated or no such file.
    """
    with path.open("rb") as handle:
        head = handle.read(8)
        header_bytes = int.from_bytes(head, "little")
        if len(head) < 8 or 8 + header_bytes > path.stat().st_size:
            raise ValueError(f"{path.name} is not a whole safetensors file")
        try:
            header = json.loads(handle.read(header_bytes))
            header.pop("__metadata__", None)
            data = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
            return {name: _view(data, entry, 8 + header_bytes) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError, OverflowError) as error:
            raise ValueError(f"{path.name} has a damaged header: {error}") from error


def _view(data: mmap.mmap, entry: dict[str, Any], base: int) -> Tensor:
    shape, dtype = entry["shape"], DTYPES[entry["dtype"]]
    count = int(torch.tensor(shape).prod()) if shape else 1
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype, count=count, offset=base + entry["data_offsets"][0]).view(shape)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
