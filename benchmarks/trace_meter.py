"""Times and added memory of one function in a process of its own, the same for both tracers. Linux only.

Added memory is the peak of resident memory during the first call minus what was resident right before it: the model and
its transcoders are loaded, a bare forward pass has run, free memory was given back to the system, and the kernel's
high-water mark is reset. Times are those of the first call and of the calls after it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def measure(trace: Callable[[], Any], forward: Callable[[], Any], repeats: int, path: Path) -> Any:
    """Measure `trace` and a bare `forward`; write the numbers to `path` as JSON and return what the first trace gave."""
    with torch.no_grad():
        forward()
        bare = min(clock(forward)["wall_s"] for _ in range(5))
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_mb("VmRSS")
    result: list[Any] = []
    first = clock(lambda: result.append(trace()))
    added = resident_mb("VmHWM") - before
    later = [clock(trace) for _ in range(repeats)]
    numbers = {"first": first, "later": later, "forward_s": bare, "added_mb": added, "before_mb": before}
    path.write_text(json.dumps(numbers))
    return result[0]


def clock(function: Callable[[], Any]) -> dict[str, float]:
    """Wall and CPU seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def resident_mb(field: str) -> float:
    """VmRSS (resident now) or VmHWM (its high-water mark) of this process."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024
