"""`unweave bench circuits`: trace models whose circuits are known, and say how near the truth each number came.

About a minute on two CPU cores; no downloads. Suites and their truths: circuits/worlds/suites.py. The table goes to standard error as it
grows, the numbers are returned (and printed by `--json`). A number that misses its target is a defect of the tracer, and
counted in `missed`.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from ..saes.errors import UserError


def bench(what: str, suites: tuple[str, ...] = (), seed: int = 0) -> dict[str, Any]:
    """Run ground-truth suites (default all) and return their rows, what each took, and how many missed their target.

    `what`: circuits, the only bench there is. UserError for another, and for suites that do not exist.
    """
    if what != "circuits":
        raise UserError(f"expected circuits; got {what!r}; this is the only bench")
    from ..circuits.worlds.suites import SUITES, failed, run_suite

    rows: list[dict[str, Any]] = []
    seconds: dict[str, float] = {}
    missed = 0
    unknown = [name for name in suites if name not in SUITES]
    if unknown:
        raise UserError(f"expected suites among {', '.join(SUITES)}; got {unknown[0]!r}; leave them out to run all")
    for name in suites or tuple(SUITES):
        start = time.perf_counter()
        done = run_suite(name, seed)
        seconds[name] = round(time.perf_counter() - start, 1)
        missed += len(failed(done))
        rows += [{"suite": name, **row._asdict()} for row in done]
        print(
            "\n".join([f"── {name} ({seconds[name]:.0f} s)", *map(line, rows[-len(done) :])]),
            file=sys.stderr,
            flush=True,
        )
    return {"rows": rows, "seconds": seconds, "missed": missed, "seed": seed}


def line(row: dict[str, Any]) -> str:
    """One row as text: whether it passed, the number, its target, and what it is."""
    mark = "" if not row["target"] else "ok" if row["passed"] else "MISSED"
    return f"{mark:>6}  {row['measured']:>9.3g}  {row['target']:<9} {row['name']}: {row['what']}"
