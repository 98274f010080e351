"""How the cost of our training step grows with the number of latents and with k.

The training-step work of step.py at 4k to 262k latents with k = 32, and at 16k latents with k = 16 to 256; no latent is dead.
Costs are CPU time in floors *of that shape*, so a constant column means growth with the dense encoder matmul. The parts:
encode and decode are timed by themselves, the rest of the step is gradients and the update. On one thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from step import OURS, WORK, Work, few_steps, make_batches, make_step, make_weights
from timing import in_fresh_process, load, make_floor, spread, timed
from torch import Tensor
from unweave.kernels import decode, encode_topk
from unweave.kernels.cpu.preselect import has_fast_bfloat16

SIZES = [
    *((latents, 32) for latents in (4096, 16_384, 65_536, 262_144)),
    *((16_384, k) for k in (16, 64, 128, 256)),
]


def run(sizes: list[tuple[int, int]] = SIZES, base: Work = WORK) -> list[dict[str, Any]]:
    """One row for each size that fits in memory; progress is printed."""
    usual, rows = torch.get_num_threads(), []
    torch.set_num_threads(1)
    for latents, k in sizes:
        work = base._replace(latents=latents, k=k)
        needed, free = needed_mb(work), free_mb()
        if needed > free:
            print(f"{latents} latents, k = {k}: skipped, needs {needed:.0f} MB and {free:.0f} MB are free")
            continue
        # A few seconds of matmul each are enough.
        rows.append(measure(work, repeats=2 if latents > 65_536 else 4 if latents > 16_384 else 10))
        print(f"{latents} latents, k = {k}: {rows[-1]['step']:.2f} floors")
    torch.set_num_threads(usual)
    return rows


def measure(work: Work, repeats: int, warm: int = 1) -> dict[str, Any]:
    """The row of one size: a floor, each part, and a whole step take turns."""
    peak = in_fresh_process(few_steps, OURS, work, False)
    batches, floor = make_batches(work), make_floor(work.batch, work.d, work.latents)
    parts = make_parts(work, batches[0])
    ratios: dict[str, list[float]] = {name: [] for name in parts}
    floors = []
    for number in range(warm + repeats):
        for name, part in parts.items():
            unit, _ = timed(floor)
            seconds, _ = timed(part, batches[number % len(batches)])
            floors.append(unit)
            ratios[name].append(seconds / unit)
    cost = {name: spread(values[warm:]) for name, values in ratios.items()}
    rest = cost["step"].median - cost["encode"].median - cost["decode"].median
    return {
        "latents": work.latents, "k": work.k, "threads": torch.get_num_threads(), "step": cost["step"].median,
        "p20": cost["step"].p20, "p80": cost["step"].p80, "encode": cost["encode"].median,
        "decode": cost["decode"].median, "gradients_update": rest, "floor_ms": 1e3 * spread(floors).median,
        "peak_mb": peak, "amx": has_fast_bfloat16(), "load": load(),
    }  # fmt: skip


def make_parts(work: Work, x: Tensor) -> dict[str, Callable[[Tensor], Any]]:
    """Encoder, decoder and whole step on weights of one size."""
    w = make_weights(work)
    codes = encode_topk(x, w["W_enc"], w["b_enc"], work.k)
    return {
        "encode": lambda batch: encode_topk(batch, w["W_enc"], w["b_enc"], work.k),
        "decode": lambda _: decode(*codes, w["W_dec"]),
        "step": make_step(OURS, x, work, auxk=False),
    }


def needed_mb(work: Work) -> float:
    """Weights twice, moments, the floor's weights, and its product; and what the process holds anyway."""
    matrices = (2 * 2 + 4 + 1) * work.latents * work.d
    return 4 * (matrices + work.batch * work.latents) / 2**20 + 500


def free_mb() -> float:
    """Memory that is free now."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20


def passed(rows: list[dict[str, Any]]) -> str | None:
    """None if every size costs less than the matmuls alone of a dense step: two forward, three back."""
    dear = [f"{row['latents']} latents, k = {row['k']}: {row['step']:.1f} floors" for row in rows if row["step"] >= 5]
    return f"as much as the five matmuls of a dense step: {', '.join(dear)}" if dear else None
