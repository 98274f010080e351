"""How fast batches come back from Shards, beside a raw read of the same bytes.

Raw is the best that plain torch does: all rows in one file, mapped into memory; in order a slice is copied, shuffled
`index_select` takes the rows of a batch from the whole. Shards have the same rows in files of `shard_mib`, read as training
does (without tokens), and a checksum is taken of each file in the first pass. Ways that are
compared are run one after the other in every round, so that a neighbour on the same cores slows all of them; ratios are
raw / ours within a round. `first` maps the files anew, `later` is the next pass; `cold` is a first pass whose files the
page cache was told to forget. The promise: at the default shard size, later passes at >= 0.8 of raw, in CPU time of all
threads (the median over rounds), where wall time on shared cores tells of the neighbours. A first pass reads every byte
twice, once for its checksum, and cannot keep it.

With `ahead` a thread reads: that costs CPU time, since rows pass from one core to another, and saves waiting. The rows
`step` are the milliseconds that a consumer which multiplies matrices for as long as a small step takes waits for a batch.
SAELens 6.54.12 gave 0.73 GB/s where raw gave 5.2 in order and 3.8 shuffled, on two idle threads of the same kind.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from timing import load, spread
from torch import Tensor
from unweave.saes import Shards
from unweave.saes.io import map_file
from unweave.saes.models import ModelInfo
from unweave.saes.shards.writer import ShardWriter
from unweave.saes.text import Block, pad_blocks

BATCH, ROUNDS, PROMISE, MIB = 4096, 7, 0.8, 2**20
# Width, stored type, MiB of all rows, MiB of a shard. The first is the promise's.
CASES = [(576, "bfloat16", 512, 128), (576, "bfloat16", 256, 8), (2048, "bfloat16", 512, 128), (576, "int8", 256, 128)]
INFO = ModelInfo("none", "f" * 32, "t" * 32, "None", 2, 8, 64, 100, 0)
WAITING_LATENTS = 512


def run(rounds: int = ROUNDS, cases: list[tuple[int, str, int, int]] = CASES) -> list[dict[str, Any]]:
    """A row for each case and way."""
    rows = []
    for d, dtype, mib, shard_mib in cases:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            count = mib * MIB // (d * getattr(torch, dtype).itemsize) // BATCH * BATCH
            write(folder, d, dtype, count, shard_mib)
            rows += compare(folder, d, dtype, count, shard_mib, rounds)
    return rows


def write(folder: Path, d: int, dtype: str, count: int, shard_mib: int) -> None:
    """The same rows as Shards and as one plain file."""
    generator = torch.Generator().manual_seed(0)
    stored = getattr(torch, dtype)
    writer = ShardWriter(folder / "shards", INFO, ["a"], stored, count, 128, shard_mib, False)
    with (folder / "plain").open("wb") as plain:
        for _ in range(0, count, BATCH):
            x = torch.randn(BATCH, d, generator=generator)
            writer.add({"a": x}, pad_blocks([Block(torch.arange(128), 0)] * (BATCH // 128)))
            plain.write(x.to(stored).view(torch.uint8).numpy().tobytes())
        os.fsync(plain.fileno())
    writer.finish()


def compare(folder: Path, d: int, dtype: str, count: int, shard_mib: int, rounds: int) -> list[dict[str, Any]]:
    """Every way of reading, each beside raw."""
    row_bytes = d * getattr(torch, dtype).itemsize
    times: dict[tuple[str, str, int], list[tuple[float, float, float, float]]] = {}
    waits: dict[int, list[float]] = {0: [], 2: []}
    for number in range(rounds + 1):
        for access in ("order", "shuffled", "window"):
            for cold in (False, True) if access == "order" else (False,):
                for ahead in (0, 2):
                    found = beside(folder, row_bytes, count, access, ahead, cold)
                    for name, measured in zip(["cold"] if cold else ["first", "later"], found, strict=False):
                        if number:  # the first round warms up
                            times.setdefault((access, name, ahead), []).append(measured)
        for ahead, waited in waits.items():
            waited += [waiting(Shards.open(folder / "shards"), d, ahead)][: number and 1]
    about = {
        "d": d, "dtype": dtype, "rows": count, "shard_mib": shard_mib, "threads": torch.get_num_threads(), "load": load(),
    }  # fmt: skip
    rows = []
    for (access, name, ahead), measured in times.items():
        ours, raw, cpu, raw_cpu = zip(*measured, strict=True)
        ratio = spread([b / a for a, b in zip(ours, raw, strict=True)])
        cpu_ratio = spread([b / a for a, b in zip(cpu, raw_cpu, strict=True)])
        rows.append({
            **about, "access": access, "pass": name, "ahead": ahead, "gb_s": count * row_bytes / 1e9 / statistics.median(ours),
            "raw_gb_s": count * row_bytes / 1e9 / statistics.median(raw), "ratio": ratio.median, "ratio_p20": ratio.p20,
            "ratio_p80": ratio.p80, "cpu_ratio": cpu_ratio.median, "wait_ms": 0.0,
        })  # fmt: skip
    for ahead, waited in waits.items():
        empty = dict.fromkeys(("gb_s", "raw_gb_s", "ratio", "ratio_p20", "ratio_p80", "cpu_ratio"), 0.0)
        rows.append(
            {**about, "access": "step", "pass": "later", "ahead": ahead, **empty, "wait_ms": statistics.median(waited)}
        )
    return rows


def beside(
    folder: Path, row_bytes: int, count: int, access: str, ahead: int, cold: bool
) -> list[tuple[float, float, float, float]]:
    """Wall and CPU seconds of ours and of raw, of a first pass and of the next."""
    shards, plain = Shards.open(folder / "shards"), map_file(folder / "plain").view(count, row_bytes)
    if cold:
        for path in (folder / "plain", *(folder / "shards").iterdir()):
            forget(path)
    options: dict[str, Any] = {"seed": None if access == "order" else 0, "window": 2 if access == "window" else 0}
    found = []
    for _ in range(1 if cold else 2):
        raw = passed_over(raw_batches(plain, access))
        ours = passed_over(
            batch.activations["a"] for batch in shards.batches(BATCH, ahead=ahead, columns=False, **options)
        )
        found.append((ours[0], raw[0], ours[1], raw[1]))
    return found


def raw_batches(plain: Tensor, access: str) -> Iterator[Tensor]:
    """The rows of one mapped file, in order or shuffled."""
    order = None if access == "order" else torch.randperm(len(plain), generator=torch.Generator().manual_seed(0))
    for start in range(0, len(plain), BATCH):
        piece = slice(start, start + BATCH)
        yield plain[piece].clone() if order is None else plain.index_select(0, order[piece])


def passed_over(batches: Iterator[Tensor]) -> tuple[float, float]:
    """Wall and CPU seconds of taking every batch."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in batches:
        pass
    return time.perf_counter() - wall, time.process_time() - cpu


def forget(path: Path) -> None:
    """Have the page cache forget a file."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def waiting(shards: Shards, d: int, ahead: int, batches: int = 40) -> float:
    """Milliseconds that a consumer waits for a batch, the median; every file was read once before."""
    for _ in shards.batches(len(shards), None, ahead=0):
        pass
    W = torch.randn(d, WAITING_LATENTS)
    work: Callable[[Tensor], Tensor] = lambda x: x.float() @ W  # noqa: E731
    waited, given = [], shards.batches(BATCH, 0, ahead=ahead)
    for _ in range(min(batches, len(shards) // BATCH)):
        start = time.perf_counter()
        batch = next(given)
        waited.append(time.perf_counter() - start)
        work(batch.activations["a"])
    return statistics.median(waited[2:] or waited) * 1e3


def passed(rows: list[dict[str, Any]]) -> str | None:
    """None, or which way of the promised case is too slow."""
    kept = [row for row in rows if row["access"] != "step" and row["pass"] == "later" and row["dtype"] != "int8"]
    slow = [row for row in kept if row["shard_mib"] >= 128 and not row["ahead"] and row["cpu_ratio"] < PROMISE]
    said = [f"{row['access']} d={row['d']}: {row['cpu_ratio']:.2f}" for row in slow]
    return f"less than {PROMISE} of raw: {'; '.join(said)}" if said else None
