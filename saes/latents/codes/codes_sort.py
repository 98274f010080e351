"""The codes of a text in two orders: by row and by latent, each in one file made with bounded memory.

    by row      starts [row + 1], latents [slot], values [slot]     the slots of row r: starts[r] to starts[r + 1]
    by latent   starts [latent + 1], rows [slot], values [slot]     likewise; rows ascend within a latent
                sum, sum_squares [latent]                           of each latent's values, in float64

By row is the parts of CodesWriter end to end. By latent is an external counting sort of that file: counts give the places,
then ranges of latents of at most RANGE slots are picked out of the mapped file, one scan each, and sorted in memory. A latent
with more slots than that is a range of its own and streams through. So memory is about 60 bytes times RANGE, whatever the
number of slots, and the scans read the file slots / RANGE times (int32 comparisons, far below the cost of the sort).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...io import map_tensors
from .tensor_file import tensor_file

RANGE = 2**22
CHUNK = 2**22


def write_by_row(path: Path, parts: Iterator[dict[str, Tensor]], rows: int, slots: int) -> None:
    """Join parts (`counts [row]`, `latents [slot]`, `values [slot]`) into the file by row."""
    sizes = {"starts": (torch.int64, rows + 1), "latents": (torch.int32, slots), "values": (torch.float32, slots)}
    with tensor_file(path, sizes) as write:
        write("starts", torch.zeros(1, dtype=torch.int64))
        before = 0
        for part in parts:
            write("starts", before + part["counts"].cumsum(0, dtype=torch.int64))
            write("latents", part["latents"])
            write("values", part["values"])
            before += len(part["latents"])


def row_chunks(starts: Int[Tensor, "edge"], slots: int = CHUNK) -> Iterator[tuple[int, int]]:
    """Spans of rows with about `slots` slots each (one row at least)."""
    first, rows = 0, len(starts) - 1
    while first < rows:
        last = int(torch.searchsorted(starts, int(starts[first]) + slots, right=True)) - 1
        last = min(max(last, first + 1), rows)
        yield first, last
        first = last


def write_by_latent(source: Path, path: Path, latents: int) -> None:
    """Sort the file by row at `source` into the file by latent at `path`. ValueError if a latent stands twice on a row."""
    by_row = map_tensors(source)
    count = torch.zeros(latents, dtype=torch.int64)
    for piece in by_row["latents"].split(CHUNK):
        count += torch.bincount(piece, minlength=latents)
    starts = torch.cat([count.new_zeros(1), count.cumsum(0)])
    slots = int(starts[-1])
    sizes = {"starts": (torch.int64, latents + 1), "sum": (torch.float64, latents)}
    sizes |= {"sum_squares": (torch.float64, latents), "rows": (torch.int32, slots), "values": (torch.float32, slots)}
    with tensor_file(path, sizes) as write:
        write("starts", starts)
        for first, last in row_chunks(starts, RANGE):
            if last == first + 1:
                _stream(by_row, first, write)
            else:
                _sorted(by_row, first, last, write)


def _picked(
    by_row: dict[str, Tensor], first: int, last: int
) -> Iterator[tuple[Int[Tensor, "n"], Int[Tensor, "n"], Float[Tensor, "n"]]]:
    """Latents, rows and values of the slots of the latents `first` to `last`, in row order, chunk by chunk."""
    starts = by_row["starts"]
    for begin, end in row_chunks(starts):
        low, high = int(starts[begin]), int(starts[end])
        latents = by_row["latents"][low:high]
        place = ((latents >= first) & (latents < last)).nonzero().squeeze(1)
        rows = torch.searchsorted(starts[begin : end + 1], place + low, right=True) - 1 + begin
        yield latents[place], rows.int(), by_row["values"][low:high][place]


def _stream(by_row: dict[str, Tensor], latent: int, write: Callable[[str, Tensor], None]) -> None:
    total = torch.zeros(2, dtype=torch.float64)
    previous = -1
    for _, rows, values in _picked(by_row, latent, latent + 1):
        _check_once(rows, torch.zeros_like(rows))
        if len(rows) and int(rows[0]) == previous:
            raise ValueError(f"latent {latent} stands twice on row {previous}")
        previous = int(rows[-1]) if len(rows) else previous
        write("rows", rows)
        write("values", values)
        total += torch.stack([values.double().sum(), values.double().square().sum()])
    write("sum", total[:1])
    write("sum_squares", total[1:])


def _sorted(by_row: dict[str, Tensor], first: int, last: int, write: Callable[[str, Tensor], None]) -> None:
    latents, rows, values = (torch.cat(parts) for parts in zip(*_picked(by_row, first, last), strict=True))
    latents, order = (latents - first).sort(stable=True)
    rows, values = rows[order], values[order]
    del order
    _check_once(rows, latents)
    write("rows", rows)
    write("values", values)
    weights = values.double()
    write("sum", torch.bincount(latents, weights, last - first).double())
    write("sum_squares", torch.bincount(latents, weights.square(), last - first).double())


def _check_once(rows: Int[Tensor, "n"], latents: Int[Tensor, "n"]) -> None:
    twice = (rows[1:] == rows[:-1]) & (latents[1:] == latents[:-1])
    if twice.any():
        raise ValueError(f"a latent stands twice on row {int(rows[1:][twice][0])}; codes name a latent once a row")
