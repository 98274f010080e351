"""The time that our Triton kernels would take on an H100, from what they move and compute (work.py). Modelled, not measured.

The rates are quoted from kernels.md section 3: 798 TFLOP/s in bfloat16 and 3.0 TB/s (measured by others on one H100), and
132 multiprocessors of 128 lanes at an assumed 1.755 GHz for what tensor cores do not do, exact float32 matmuls among it.

    ms         of each kernel the longest of memory, tensor cores and lanes, as if they overlapped; the kernels added up
    serial_ms  the sum of the three instead: the truth should lie between, if a matmul runs at the quoted rate
    floor_ms   inputs read once, outputs written once, and the arithmetic that the op is defined by

`matmul_topk` is what `encode_topk` replaces. The promise is about scratch: what of its traffic is neither inputs nor weights nor
codes is at most a tenth of matmul_topk's. `extra_share` is stricter and counts the weights that `repair` reads again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import work
from work import Shape, Work

TENSOR, BANDWIDTH, LANES = 798e12, 3.0e12, 132 * 128 * 1.755e9  # a second
TOKENS, WIDTHS = 8192, (768, 2304, 4096)
LATENTS = {2**14: 32, 2**16: 64, 2**18: 64, 2**20: 128}  # k for each, about as in the shapes of kernels.md

Kernels = tuple[Callable[[Shape], Work], ...]
OPS: dict[str, Kernels] = {
    "encode_topk": (work.group_matmul, work.merge, work.repair, work.order),
    "matmul_topk": (work.dense_matmul, work.topk_of_matrix),
    "encode_batch_topk": (work.group_matmul, work.batch_threshold, work.order),
    "encode_threshold": (work.group_matmul, work.gather_active, work.order),
    "decode": (work.decode,),
    "contract": (work.contract,),
    "weight_gradient": (work.weight_gradient,),
    "sae_gradient": (work.sae_gradient,),
    "adam": (work.adam,),
}


def run() -> list[dict[str, Any]]:
    """Every op at every shape, `encode_topk` also kernel by kernel."""
    rows = []
    for size in (2, 4):
        for d in WIDTHS:
            for latents, k in LATENTS.items():
                s = Shape(TOKENS, d, latents, k, size)
                rows += [row(op, s, kernels) for op, kernels in OPS.items()]
                rows += [row(kernel.__name__, s, (kernel,)) for kernel in OPS["encode_topk"]]
    return rows


def row(name: str, s: Shape, kernels: Kernels) -> dict[str, Any]:
    """The columns of one op or kernel."""
    parts = [kernel(s) for kernel in kernels]
    total = Work(*(sum(column) for column in zip(*parts, strict=True)))
    replaced = sum(kernel(s).scratch for kernel in OPS["matmul_topk"])
    numbers = {
        "gb": total.bytes / 1e9, "scratch_gb": total.scratch / 1e9, "scratch_share": total.scratch / replaced,
        "extra_share": (total.scratch + total.again) / replaced, "tensor_tflop": total.tensor / 1e12,
        "ms": sum(max(times(part)) for part in parts), "serial_ms": sum(times(total)),
        "floor_ms": max(times(floor(name, s))) if name in OPS else float("nan"),
    }  # fmt: skip
    about = {"source": "modelled", "op": name, "dtype": {2: "bfloat16", 4: "float32"}[s.size], **s._asdict()}
    return {**about, **{name: float(f"{number:.4g}") for name, number in numbers.items()}}


def times(part: Work) -> tuple[float, float, float]:
    """Milliseconds of memory, tensor cores and lanes."""
    return 1e3 * part.bytes / BANDWIDTH, 1e3 * part.tensor / TENSOR, 1e3 * part.lanes / LANES


def floor(op: str, s: Shape) -> Work:
    """The least that any implementation does."""
    codes, named, out = 12 * s.slots, min(s.latents, s.slots) * s.d * s.size, 4 * s.latents * s.d
    products, per_slot = float(s.tokens * s.latents * s.d), float(s.slots * s.d)
    rates = {"tensor": 2 * products} if s.size == 2 else {"lanes": products}
    encode = Work(s.x + s.weights + 4 * s.latents + codes, **rates)
    return {
        "decode": Work(codes + named + 4 * s.tokens * s.d, lanes=per_slot),
        "contract": Work(codes + named + s.x, lanes=per_slot),
        "weight_gradient": Work(codes + s.x + out, lanes=per_slot),
        "sae_gradient": Work(codes + 4 * s.slots + 2 * s.x + named + 2 * out + 4 * s.latents, lanes=3 * per_slot),
        "adam": work.adam(s),
    }.get(op, encode)


def passed(rows: list[dict[str, Any]]) -> str | None:
    """None if `encode_topk` moves, beyond inputs, weights and codes, at most a tenth of what matmul-then-top-k does."""
    broken = [
        f"{row['dtype']} d={row['d']} latents={row['latents']} k={row['k']}: {row['scratch_share']:.3f}"
        for row in rows
        if row["op"] == "encode_topk" and row["scratch_share"] > 0.1
    ]
    return f"more than a tenth of the bytes of matmul-then-top-k: {'; '.join(broken)}" if broken else None
