"""Training runs: curves, config, evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..figures import training_figure
from ..text import jsonable
from .registry import nth, path

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from ..things import Things


@path(r"runs/(\d{1,6})")
def run(things: Things, place: int) -> dict[str, Any]:
    """The run at a place."""
    found = nth(list(things.runs.values()), place)
    return run_payload(found.rows, found.about)


def run_payload(rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> dict[str, Any]:
    """A training run: its curves as a plotly figure, its last logged row, its config and evaluation."""
    return {
        "figure": figure_json(training_figure(rows)),
        "rows": len(rows),
        "about": jsonable(dict(about)),
        "last": jsonable(dict(rows[-1])) if rows else {},
    }


def figure_json(figure: Figure) -> dict[str, Any]:
    """A figure for the page, without plotly's template: the page brings its own colours, light or dark."""
    plain = json.loads(str(figure.to_json()))
    plain["layout"].pop("template", None)
    return plain
