"""A safetensors file that grows piece by piece, for tensors that memory should not hold whole.

The sizes are given first, since the header stands at the front; each tensor is then appended to in its own place. Like all
files here it is written under a temporary name, flushed, and renamed (saes/io.py).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...io import DTYPES, atomic_path

NAMES = {dtype: name for name, dtype in DTYPES.items()}


@contextlib.contextmanager
def tensor_file(path: Path, sizes: Mapping[str, tuple[torch.dtype, int]]) -> Iterator[Callable[[str, Tensor], None]]:
    """Yield `write(name, part)`, which appends to the one-dimensional tensor `name` of the file at `path`.

    `sizes` has the dtype and the final length of each. ValueError unless exactly so much was written, OSError that names the
    file if the disk refuses it; then no file is left.
    """
    header, end = {}, 0
    for name, (dtype, count) in sizes.items():
        span = [end, end + count * dtype.itemsize]
        header[name] = {"dtype": NAMES[dtype], "shape": [count], "data_offsets": span}
        end = span[1]
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    base = 8 + len(head)
    place = {name: base + entry["data_offsets"][0] for name, entry in header.items()}
    with _named(path), atomic_path(path) as temporary:
        with temporary.open("wb") as handle:
            handle.write(len(head).to_bytes(8, "little") + head)
            handle.truncate(base + end)

            def write(name: str, part: Tensor) -> None:
                if part.dtype != sizes[name][0]:
                    raise ValueError(f"expected {sizes[name][0]} for {name}; got {part.dtype}")
                handle.seek(place[name])
                handle.write(part.contiguous().numpy().data)
                place[name] += part.nbytes

            yield write
        for name, entry in header.items():
            if place[name] != base + entry["data_offsets"][1]:
                raise ValueError(f"expected {entry['shape'][0]} numbers in {name} of {path.name}; got more or fewer")


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file in an error of the disk that names none: a write to a full disk says its number only."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(f"could not write {path}: {error}") from error
