"""How the benchmarks time on a shared CPU: CPU time rather than wall time, and each number beside a floor of that moment.

The floor is one dense float32 encoder matmul `[token d] @ [d latent]` into a buffer that is reused, timed right before what
it is compared with, so that a neighbour on the same cores slows both. Memory is the peak of a fresh process, because that
of this one would be the peak of whatever ran before.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Spread(NamedTuple):
    """Median, 20th and 80th percentile."""

    median: float
    p20: float
    p80: float


def spread(values: list[float]) -> Spread:
    """The spread of two or more values."""
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return Spread(statistics.median(values), fifths[0], fifths[-1])


def timed(function: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    """CPU seconds of one call, all threads together, and what it returns."""
    start = time.process_time()
    result = function(*args)
    return time.process_time() - start, result


def make_floor(tokens: int, d: int, latents: int) -> Callable[[], Tensor]:
    """One dense encoder matmul of this shape, ready to be called."""
    x, W, b = torch.randn(tokens, d), torch.randn(latents, d), torch.zeros(latents)
    out = torch.empty(tokens, latents)
    return lambda: torch.addmm(b, x, W.T, out=out)


def load() -> float:
    """Load average of the last minute: above the number of cores, the neighbours matter."""
    return os.getloadavg()[0]


def in_fresh_process(function: Callable[..., Any], *args: Any) -> float:
    """Peak resident MB of a process that imports the function's module, calls it and nothing else."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(peak_mb, function, *args).result()


def peak_mb(function: Callable[..., Any], *args: Any) -> float:
    """Peak resident MB of this process once it has called a function.

    From /proc, so on Linux; `ru_maxrss` would count what the parent held when it started this process.
    """
    function(*args)
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
