"""Tracing the same prompt with the same model and transcoders, ours beside circuit-tracer: same edges, time, added memory.

Four sizes of a random Llama-like model (trace_case.py), d = 256, transcoders with 40 active latents a token, float32. Each
run is a process of its own, ours and theirs by turns, on 2 threads; trace_meter.py says what is measured.
`UNWEAVE_RIVAL` names the Python interpreter of an environment with circuit-tracer 0.5.0, which cannot share ours (it takes
transformer-lens 3 and transformers 4); without it only our side is run.

Ours is run twice, since feature nodes are chosen by signed total attribution unless one asks for absolute influence, as
circuit-tracer chooses them. Edges are compared on the nodes that both graphs have: for every row |difference| as a
share of the row's sum of |weights|. How much faster is told in wall and in CPU time: on shared cores only the second is steady.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from timing import load
from trace_case import Case, make_case
from trace_runs import INFLUENCE, OURS, RIVAL, Difference, difference, one_run, summary

CASES = (Case(4, 2048, 10, 1000), Case(6, 4096, 20, 2000), Case(8, 8192, 20, 4000), Case(8, 16_384, 30, 4000))
# What is promised: the largest difference of a row, how much faster, and what share of the added memory.
DIFFERENCE, FASTER, MEMORY_SHARE = 1e-5, 10.0, 0.25
COMPARED = ("faster", "faster_cpu", "memory_share", "common_features", "worst_difference")


def run(cases: tuple[Case, ...] = CASES, rounds: int = 2, repeats: int = 2, threads: int = 2) -> list[dict[str, Any]]:
    """One row for each case and tracer; progress is printed."""
    rival = os.environ.get("UNWEAVE_RIVAL")
    if rival is None:
        print("UNWEAVE_RIVAL names no interpreter with circuit-tracer: only ours is measured")
    rows = []
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            rows += compare_case(case, Path(folder), rival, rounds, repeats, threads)
        print("; ".join(f"{row['method']} {row['wall_s']:.3f} s, {row['added_mb']:.0f} MB" for row in rows[-3:]))
    return rows


def compare_case(
    case: Case, folder: Path, rival: str | None, rounds: int, repeats: int, threads: int
) -> list[dict[str, Any]]:
    """The rows of one case."""
    path = folder / "case.safetensors"
    make_case(case, path)
    interpreters = {OURS: sys.executable, INFLUENCE: sys.executable} | ({RIVAL: rival} if rival else {})
    runs: dict[str, list[dict[str, Any]]] = {method: [] for method in interpreters}
    for _ in range(rounds):
        for method, python in interpreters.items():
            runs[method].append(one_run(method, python, path, folder / method, repeats, threads))
    summaries = {method: summary(numbers) for method, numbers in runs.items()}
    about = {"layers": case.layers, "latents": case.latents, "prompt": case.prompt, "nodes": case.nodes}
    rows = []
    for method, own in summaries.items():
        row = about | {"method": method, "threads": threads, **own, **dict.fromkeys(COMPARED, ""), "load": load()}
        if rival and method != RIVAL:
            found = difference(*(load_file(folder / f"{name}.safetensors") for name in (method, RIVAL)))
            row |= compared(own, summaries[RIVAL], found)
        rows.append(row)
    return rows


def compared(ours: dict[str, float], theirs: dict[str, float], found: Difference) -> dict[str, float]:
    """The columns in which our row is set against theirs."""
    faster, faster_cpu = (theirs[time] / ours[time] for time in ("wall_s", "cpu_s"))
    share = ours["added_mb"] / theirs["added_mb"]
    return dict(zip(COMPARED, (faster, faster_cpu, share, found.common, found.worst), strict=True))


def passed(rows: list[dict[str, Any]]) -> str | None:
    """None if every promise holds (or there is nothing to compare with), else those that do not; speed is promised of the default."""
    broken = []
    for row in rows:
        if row["faster"] == "":
            continue
        case = f"{row['method']}, {row['layers']} layers, {row['prompt']} tokens, {row['nodes']} nodes"
        if not row["worst_difference"] <= DIFFERENCE:
            broken.append(
                f"{case}: an edge differs by {row['worst_difference']:.1e} of its row, more than {DIFFERENCE}"
            )
        if not row["common_features"]:
            broken.append(f"{case}: no feature node in common")
        if row["method"] == OURS and min(row["faster"], row["faster_cpu"]) < FASTER:
            broken.append(
                f"{case}: {row['faster']:.1f} ({row['faster_cpu']:.1f} in CPU time) times as fast, not {FASTER:.0f}"
            )
        if row["memory_share"] > MEMORY_SHARE:
            broken.append(f"{case}: {row['memory_share']:.2f} of the added memory, more than {MEMORY_SHARE}")
    return "; ".join(broken) or None
