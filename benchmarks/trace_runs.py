"""One traced case in a process of its own, and how two tracers' graphs compare on the nodes that both have."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

HERE = Path(__file__).parent
OURS, INFLUENCE, RIVAL = "ours", "ours, by influence", "circuit-tracer"
SCRIPTS = {
    OURS: ("trace_ours.py", "attribution"),
    INFLUENCE: ("trace_ours.py", "influence"),
    RIVAL: ("trace_rival.py", "512"),
}


class Difference(NamedTuple):
    """How two graphs compare on their common nodes: how many of these are features, and the worst row."""

    common: int
    rows: int
    worst: float


def one_run(method: str, python: str, case: Path, out: Path, repeats: int, threads: int) -> dict[str, Any]:
    """The numbers of one process (trace_meter.py)."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONSAFEPATH": "1", "PYTHONWARNINGS": "ignore"}
    script, option = SCRIPTS[method]
    command = [python, str(HERE / script), str(case), str(out), str(repeats), option]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{script} failed with {python}:\n{done.stderr[-2000:]}")
    return json.loads(out.with_suffix(".json").read_text())


def summary(numbers: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over all runs: of a trace after the first, of the first, of the forward pass, of the added memory."""
    later = [call for one in numbers for call in one["later"]]
    wall = statistics.median(call["wall_s"] for call in later)
    forward = statistics.median(one["forward_s"] for one in numbers)
    return {
        "wall_s": wall,
        "cpu_s": statistics.median(call["cpu_s"] for call in later),
        "first_s": statistics.median(one["first"]["wall_s"] for one in numbers),
        "forwards": wall / forward,
        "added_mb": statistics.median(one["added_mb"] for one in numbers),
    }


def difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> Difference:
    """Compare two graphs (trace_ours.py has the format) on the nodes that both have."""
    mine, other = places(ours["nodes"]), places(theirs["nodes"])
    common = sorted(mine.keys() & other.keys())
    a = between(ours, [mine[node] for node in common])
    b = between(theirs, [other[node] for node in common])
    mass = b.abs().sum(1)
    has_row = mass > 0
    worst = ((a - b).abs().amax(1) / mass)[has_row]
    features = sum(kind == 2 for kind, *_ in common)
    return Difference(features, int(has_row.sum()), float(worst.max()) if len(worst) else float("nan"))


def places(nodes: Tensor) -> dict[tuple[int, ...], int]:
    """Node -> its number; kind -1 is what only ours has, and never common."""
    return {tuple(node): number for number, node in enumerate(nodes.tolist())}


def between(graph: dict[str, Tensor], wanted: list[int]) -> Tensor:
    """The dense matrix [target source] of the edges among the wanted nodes, in float64."""
    number = torch.full((len(graph["nodes"]),), -1)
    number[wanted] = torch.arange(len(wanted))
    target, source = number[graph["target"].long()], number[graph["source"].long()]
    keep = (target >= 0) & (source >= 0)
    matrix = torch.zeros(len(wanted), len(wanted), dtype=torch.float64)
    matrix[target[keep], source[keep]] = graph["weight"][keep].double()
    return matrix
