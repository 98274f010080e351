"""Every op of unweave.kernels against the best line of plain torch, and against the floor. The Triton kernels need a CUDA device.

The gate, the kernels' own tests on the same device, comes first. On CUDA the shapes are S1 and S2 of kernels.md in bfloat16
and times are medians of `triton.testing.do_bench`; without, the CPU path is timed at the training-step work in CPU time.
The floor is that of model.py at two rates measured right before: a large matmul, and a copy. Data are random normal,
codes those of the encoder. `peak_mb` is what an op allocates beyond its inputs on CUDA: [token latent] is not among it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import model
import torch
from timing import Spread, load, spread, timed
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize
from unweave import kernels
from unweave.kernels import reference
from work import Shape

GPU_SHAPES = [Shape(8192, 768, 24_576, 32, 2), Shape(8192, 2304, 65_536, 64, 2)]
CPU_SHAPES = [Shape(2048, 576, 16_384, 32, 4)]

Call = Callable[[], Any]


class Case(NamedTuple):
    """An op of ours and plain lines that do the same."""

    op: str
    ours: Call
    plain: dict[str, Call]


class Rates(NamedTuple):
    """Floating-point operations of a matmul and bytes of a copy, a second."""

    flops: float
    bytes: float


def run() -> list[dict[str, Any]]:
    """One row for each op and shape."""
    has_cuda = torch.cuda.is_available()
    device = torch.device("cuda" if has_cuda else "cpu")
    if not has_cuda:
        print("the Triton kernels need a CUDA device to be timed; these are the ops on the CPU")
    rows = []
    for shape in GPU_SHAPES if has_cuda else CPU_SHAPES:
        rates = measure_rates(shape, device)
        rows += [row(case, shape, device, rates) for case in make_cases(shape, device)]
    return rows


@torch.no_grad()
def row(case: Case, s: Shape, device: torch.device, rates: Rates) -> dict[str, Any]:
    """The columns of one op."""
    ours = measure(case.ours, device)
    plain = {name: measure(call, device).median for name, call in case.plain.items()}
    best = min(plain, key=lambda name: plain[name])
    choice = kernels.which(case.op, device=device, dtype=dtype_of(s), latents=s.latents, k=s.k)
    return {
        "device": device.type, "op": case.op, "path": choice.path, **s._asdict(), "ms": ours.median, "p20": ours.p20,
        "p80": ours.p80, "best_plain": best, "plain_ms": plain[best], "floor_ms": floor_ms(case.op, s, rates),
        "peak_mb": peak_mb(case.ours, device), "load": load(),
    }  # fmt: skip


def make_cases(s: Shape, device: torch.device) -> list[Case]:
    """Data of one shape, and every op on them."""
    generator = torch.Generator().manual_seed(0)
    data = (torch.randn(size, generator=generator) for size in ((s.tokens, s.d), (s.tokens, s.d), (s.latents, s.d)))
    x, g, W = (part.to(device, dtype_of(s)) for part in data)
    W, b = normalize(W, dim=1), 0.1 * W[:, 0]
    threshold = torch.full_like(b, float(pre(x[:256], W, b).float().topk(s.k).values[:, -1].mean()))
    values, indices = kernels.encode_topk(x, W, b, s.k)
    weights, edges = values.to(W.dtype), torch.linspace(0, 8, 33, device=device)
    given = pre(x, W, b) if s.latents < 50_000 else pre(x[: s.tokens // 4], W, b)
    return [
        Case(
            "encode_topk", partial(kernels.encode_topk, x, W, b, s.k), {"addmm, topk": lambda: pre(x, W, b).topk(s.k)}
        ),
        Case(
            "encode_batch_topk",
            partial(kernels.encode_batch_topk, x, W, b, s.k, capacity=4 * s.k),
            {"addmm, topk of all": lambda: pre(x, W, b).flatten().topk(s.tokens * s.k, sorted=False)},
        ),
        Case(
            "encode_jumprelu",
            partial(kernels.encode_jumprelu, x, W, b, threshold, capacity=4 * s.k),
            {"addmm, where, not compacted": lambda: cut(pre(x, W, b), threshold)},
        ),
        Case("topk", partial(kernels.topk, given, s.k), {"topk": lambda: given.topk(s.k)}),
        Case(
            "decode",
            partial(kernels.decode, values, indices, W),
            {
                "dense matmul": lambda: dense(weights, indices, s) @ W,
                "embedding_bag": lambda: embedding_bag(indices, W, per_sample_weights=weights, mode="sum"),
            },
        ),
        Case(
            "contract",
            partial(kernels.contract, g, indices, W),
            {
                "dense matmul, gather": lambda: (g @ W.T).gather(1, indices),
                "gather, bmm": lambda: torch.bmm(W[indices], g[:, :, None]),
            },
        ),
        Case(
            "weight_gradient",
            partial(kernels.weight_gradient, values, indices, g, s.latents),
            {
                "dense matmul": lambda: dense(weights, indices, s).T @ g,
                "index_add": lambda: add(weights, indices, g, s),
            },
        ),
        Case(
            "sae_gradient",
            partial(kernels.sae_gradient, g, x, values, indices, W),
            {"three dense matmuls": lambda: dense_gradient(g, x, weights, indices, W, s)},
        ),
        Case(
            "segment",
            partial(kernels.segment, values, indices, s.latents, edges, 16),
            {"definition": partial(reference.segment, values, indices, s.latents, edges, 16)},
        ),
    ]


def pre(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """Pre-activations [token latent]."""
    return torch.addmm(b, x, W.T)


def cut(pre: Tensor, threshold: Tensor) -> Tensor:
    """What is above the threshold, dense."""
    return torch.where(pre > threshold, pre, 0)


def dense(values: Tensor, indices: Tensor, s: Shape) -> Tensor:
    """Codes as [token latent]."""
    return values.new_zeros(s.tokens, s.latents).scatter_(1, indices, values)


def add(values: Tensor, indices: Tensor, rows: Tensor, s: Shape) -> Tensor:
    """The weights' gradient by way of [token k d]."""
    parts = (values[:, :, None] * rows[:, None]).flatten(0, 1)
    return rows.new_zeros(s.latents, s.d).index_add_(0, indices.flatten(), parts)


def dense_gradient(g: Tensor, x: Tensor, values: Tensor, indices: Tensor, W: Tensor, s: Shape) -> tuple[Tensor, ...]:
    """What autograd does for a dense TopK autoencoder."""
    of_codes = (g @ W.T).gather(1, indices)
    of_pre = dense(of_codes, indices, s)
    return of_codes, dense(values, indices, s).T @ g, of_pre.T @ x, of_pre.sum(0)


def measure(call: Call, device: torch.device) -> Spread:
    """Milliseconds of a call: of the device, or of the CPU's time."""
    if device.type == "cuda":
        import triton.testing

        return Spread(*triton.testing.do_bench(call, quantiles=[0.5, 0.2, 0.8]))
    call()
    return spread([1e3 * timed(call)[0] for _ in range(5)])


def measure_rates(s: Shape, device: torch.device) -> Rates:
    """What a matmul of the encoder's shape and a copy of 256 MiB reach here."""
    x, W = torch.ones(s.tokens, s.d, device=device), torch.ones(s.latents, s.d, device=device)
    x, W = x.to(dtype_of(s)), W.to(dtype_of(s))
    out = torch.empty(s.tokens, s.latents, dtype=x.dtype, device=device)
    source, target = torch.zeros(2, 2**26, device=device)
    matmul = measure(lambda: torch.mm(x, W.T, out=out), device).median
    copy = measure(lambda: target.copy_(source), device).median
    return Rates(2e3 * s.tokens * s.latents * s.d / matmul, 2e3 * source.nbytes / copy)


def floor_ms(op: str, s: Shape, rates: Rates) -> float:
    """The longer of arithmetic and memory at the measured rates; only memory for ops without a matmul."""
    if op in ("topk", "segment"):
        read = s.tokens * s.latents * s.size if op == "topk" else 12 * s.slots
        return 1e3 * (read + 12 * s.slots) / rates.bytes
    least = model.floor(op, s)
    flops = 2 * s.tokens * s.latents * s.d if op.startswith("encode") else 0
    return 1e3 * max(least.bytes / rates.bytes, flops / rates.flops)


def peak_mb(call: Call, device: torch.device) -> float:
    """MB that a call allocates beyond what is there, on CUDA."""
    if device.type != "cuda":
        return float("nan")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def dtype_of(s: Shape) -> torch.dtype:
    """Of inputs and weights."""
    return torch.bfloat16 if s.size == 2 else torch.float32


def passed(rows: list[dict[str, Any]]) -> str | None:
    """None if no op is slower than the best plain line by more than the noise; the rows stay either way."""
    slower = [
        f"{row['op']} d={row['d']}: {row['ms']:.2f} ms, plain {row['plain_ms']:.2f}"
        for row in rows
        if row["ms"] > 1.1 * row["plain_ms"]
    ]
    return f"slower than plain torch: {'; '.join(slower)}" if slower else None
