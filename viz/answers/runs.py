"""Training runs: curves, config, evaluation; of a run that is still training, as it is now."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..figures import training_figure
from ..text import jsonable, number
from .registry import nth, path

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from ..things import Run, Things

CURRENT = 120  # seconds without a new line after which a run no longer counts as training


@path(r"runs/(\d{1,6})")
def run(things: Things, place: int) -> dict[str, Any]:
    """The run at a place, read again."""
    found = nth(list(things.runs.values()), place).fresh()
    return run_payload(found.rows, found.about) | progress(found)


def run_payload(rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> dict[str, Any]:
    """A training run: its curves as a plotly figure, its last logged row, its config and evaluation."""
    return {
        "figure": figure_json(training_figure(rows)),
        "rows": len(rows),
        "about": jsonable(dict(about)),
        "last": jsonable(dict(rows[-1])) if rows else {},
    }


def progress(run: Run) -> dict[str, Any]:
    """How far a run is: `state` finished, training or stopped; share of its tokens; seconds left at its present speed."""
    if run.is_finished:
        return {"state": "finished", "share": 1.0, "left_s": None}
    last = run.rows[-1] if run.rows else {}
    total, seen, speed = run.about.get("config", {}).get("tokens"), last.get("tokens", 0), last.get("tokens_per_s")
    known = (
        all(isinstance(value, (int, float)) and 0 <= value < 1e18 for value in (total, seen, speed)) and total and speed
    )
    return {
        "state": "training" if _age(run) < CURRENT else "stopped",
        "share": number(seen / total, 3) if known else None,
        "left_s": number((total - seen) / speed, 2) if known else None,
    }


def _age(run: Run) -> float:
    """Seconds since the run last wrote."""
    assert run.folder is not None
    written = [run.folder / "metrics.jsonl", run.folder / "config.json", *run.folder.glob("checkpoint*")]
    return time.time() - max((path.stat().st_mtime for path in written if path.exists()), default=0.0)


def figure_json(figure: Figure) -> dict[str, Any]:
    """A figure for the page, without plotly's template: the page brings its own colours, light or dark."""
    plain = json.loads(str(figure.to_json()))
    plain["layout"].pop("template", None)
    return plain
