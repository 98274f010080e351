"""What a page carries of circuits beside `graphs/G`: tables, labels, saved views, groups, and figures where the page has plotly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .registry import answer

if TYPE_CHECKING:
    from ..things import Things


def frozen_graphs(things: Things, has_plotly: bool) -> Iterator[tuple[str, Any]]:
    """Paths and answers about the open circuits; Neuronpedia's JSON and other sizes of the picture are for live hosts."""
    if things.graphs:
        yield "graphs", answer(things, "graphs")
    if len(things.graphs) > 1 and has_plotly:
        yield "graphs/figures/dashboard", answer(things, "graphs/figures/dashboard")
    parts = ["view", "labels", "groups", *(f"figures/{name}" for name in ("scores", "paths", "ledger") if has_plotly)]
    for place, graph in enumerate(things.graphs.values()):
        for part in [*parts, *(["heads"] if graph.metadata.get("heads") else [])]:
            yield f"graphs/{place}/{part}", answer(things, f"graphs/{place}/{part}")
