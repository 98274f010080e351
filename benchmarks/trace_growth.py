"""How the cost of our tracer grows with the number of feature nodes and with the length of the prompt.

The model of trace.py with 8 layers and 16,384 latents: 1k to 8k feature nodes on a prompt of 30 tokens, 2,000 nodes
on prompts of 10 to 512 tokens, and both ends at once. One process each, on 2 threads, as in trace.py.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from timing import load
from trace_case import Case, make_case
from trace_runs import OURS, one_run, summary

BASE = Case(8, 16_384, 30, 2000)
SIZES = [
    *((nodes, 30) for nodes in (1000, 2000, 4000, 8000)),
    *((2000, prompt) for prompt in (10, 32, 128, 512)),
    (8000, 512),
]


def run(
    sizes: list[tuple[int, int]] = SIZES, base: Case = BASE, repeats: int = 2, threads: int = 2
) -> list[dict[str, Any]]:
    """One row for each (feature nodes, prompt); progress is printed."""
    rows = []
    for nodes, prompt in sizes:
        case = base._replace(nodes=nodes, prompt=prompt)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "case.safetensors"
            make_case(case, path)
            own = summary([one_run(OURS, sys.executable, path, Path(folder) / "ours", repeats, threads)])
        rows.append({"nodes": nodes, "prompt": prompt, "threads": threads, **own, "load": load()})
        print(f"{nodes} nodes, {prompt} tokens: {own['wall_s']:.2f} s, {own['added_mb']:.0f} MB")
    return rows


def passed(rows: list[dict[str, Any]]) -> None:
    """Nothing is promised here."""
