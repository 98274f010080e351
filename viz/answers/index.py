"""The index: what is open here, and what this host can do."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ..text import jsonable, readable
from ..things import flat
from .maps import has_map
from .parts import run_sites
from .registry import path

if TYPE_CHECKING:
    from ..things import Things


@path("index")
def index(things: Things, can: Sequence[str] = ()) -> dict[str, Any]:
    """What is open, and the numbers that describe the whole; `can` names the actions of this host."""
    return {
        "title": readable(things.title),
        "version": version("unweave"),
        "can": list(can),
        "numbers": jsonable(flat(things.numbers)),
        "runs": [
            {
                "name": readable(name),
                "metrics": jsonable(flat(run.about.get("metrics", {}))),
                "sites": run_sites(run),
            }
            for name, run in things.runs.items()
        ],
        "stores": [
            {"name": readable(name), "latents": len(store), "map": has_map(store)}
            for name, store in things.stores.items()
        ],
        "graphs": [
            {"name": readable(name), "prompt": readable(graph.metadata.get("prompt", ""), 400)}
            for name, graph in things.graphs.items()
        ],
        "diffs": [{"name": readable(name), "method": found.method} for name, found in things.diffs.items()],
        "audits": [{"name": readable(name)} for name in things.audits],
    }
