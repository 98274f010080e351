"""`unweave bench circuits`, `synthetic`, `audit` and `scratchpad`: what is found where the truth is known.

circuits    trace models whose circuits are known, and say how near the truth each number came; about half a minute on two CPU cores.
            Suites and their truths: circuits/worlds/suites.py. A number that misses its target is a defect of the tracer.
synthetic   train every kind of dictionary on activations whose features are known, and say how much each finds; about ten minutes, with
            `quick` two. World, measures and methods: saes/synthetic/. A ranking that the literature contradicts is told.
audit       plant quirks and their controls in the bundled model, and say which tools and whether the scripted auditor find them; hours
            of one core, with `quick` (a tiny model) half a minute. audit/game/. An auditor no better than a black box is a miss.
scratchpad  train tiny models that need a scratchpad, or do not, and say how well each method tells; about ten minutes.
            audit/scratchpad/worlds.py.

No downloads. The table goes to standard error as it grows, the numbers are returned (and printed by `--json`); what missed its
target is counted in `missed`.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..saes.cli import tell
from ..saes.errors import UserError


def bench(
    what: str,
    suites: tuple[str, ...] = (),
    seed: int = 0,
    *,
    methods: tuple[str, ...] = (),
    seeds: int = 3,
    quick: bool = False,
    out: Path | None = None,
) -> dict[str, Any]:
    """Run a bench and return its rows, what it took, and how many missed their target.

    `what`: circuits (with `suites`, `seed`), synthetic (with `methods`, `seeds`, `quick`), audit (with `seed`, `quick`, `out`) or
    scratchpad (with `seed`, `seeds`). UserError for another, for suites or methods that do not exist, and for options of another bench.
    """
    if what not in BENCHES:
        raise UserError(f"expected {', '.join(BENCHES)}; got {what!r}; these are the benches")
    run, taken = BENCHES[what]
    given = {"suites": suites, "seed": seed, "methods": methods, "seeds": seeds, "quick": quick, "out": out}
    if other := [name for name in given if given[name] != DEFAULTS[name] and name not in taken]:
        raise UserError(f"expected {', '.join(taken)} with {what}; got {', '.join(other)}; drop them")
    return run(**{name: given[name] for name in taken})


def circuits(suites: tuple[str, ...], seed: int) -> dict[str, Any]:
    """Run ground-truth suites (default all)."""
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
        tell("\n".join([f"── {name} ({seconds[name]:.0f} s)", *map(line, rows[-len(done) :])]))
    return {"rows": rows, "seconds": seconds, "missed": missed, "seed": seed}


def synthetic(methods: tuple[str, ...], seeds: int, quick: bool) -> dict[str, Any]:
    """Train methods (default all) on known features."""
    from ..saes.synthetic.compare import QUICK, Size, checks, compare, table, to_json

    start = time.perf_counter()
    rows = compare(methods, seeds, QUICK if quick else Size(), tell=tell)
    ranks = checks(rows)
    tell(table(rows))
    for one in ranks:
        tell(f"{'ok' if one.passed else 'MISSED':>6}  {one.left:>9.3g}  {one.right:>9.3g}  {one.name} ({one.source})")
    return {
        "rows": to_json(rows),
        "checks": [one._asdict() for one in ranks],
        "seconds": round(time.perf_counter() - start, 1),
        "missed": sum(not one.passed for one in ranks),
        "seeds": seeds,
    }


def audit(seed: int, quick: bool, out: Path | None) -> dict[str, Any]:
    """Play the auditing game, in `out` or in a folder that is gone afterwards."""
    from ..audit.game import bench as game
    from ..audit.game.table import summary, table

    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="unweave-game-")))
        rows = game.play(game.tiny_game() if quick else game.english_game(), folder, seed, tell)
    lines = summary(rows)
    tell(table(rows))
    hits = {line["contestant"]: line["hits"] for line in lines if line["side"] == "base"}
    return {
        "rows": rows,
        "summary": lines,
        "seconds": round(time.perf_counter() - start, 1),
        "missed": int(hits["auditor"] <= hits["chat"]),
        "seed": seed,
    }


def scratchpad(seed: int, seeds: int) -> dict[str, Any]:
    """Ask of models whose use of a scratchpad is known whether they use it."""
    from ..audit.scratchpad.bench import run_suite

    found = run_suite(seeds=seeds, seed=seed, tell=tell)
    tell(repr(found))
    # A method that cannot be told from chance between models is no defect of the program, so nothing here is missed.
    return {**found.to_dict(), "missed": 0, "seed": seed, "seeds": seeds}


BENCHES: dict[str, tuple[Callable[..., dict[str, Any]], tuple[str, ...]]] = {
    "circuits": (circuits, ("suites", "seed")),
    "synthetic": (synthetic, ("methods", "seeds", "quick")),
    "audit": (audit, ("seed", "quick", "out")),
    "scratchpad": (scratchpad, ("seed", "seeds")),
}
DEFAULTS: dict[str, Any] = {"suites": (), "seed": 0, "methods": (), "seeds": 3, "quick": False, "out": None}


def line(row: dict[str, Any]) -> str:
    """One row as text: whether it passed, the number, its target, and what it is."""
    mark = "" if not row["target"] else "ok" if row["passed"] else "MISSED"
    return f"{mark:>6}  {row['measured']:>9.3g}  {row['target']:<9} {row['name']}: {row['what']}"
