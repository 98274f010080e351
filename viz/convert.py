"""`unweave convert`: graphs and dictionaries in the forms of other tools.

| to | from | writes |
|---|---|---|
| neuronpedia | a graph (`.graph`, `.json`, `.json.gz`) | one JSON file for Neuronpedia's and circuit-tracer's viewers |
| circuit_tracer | dictionary folders, or one folder of them | a folder that circuit-tracer loads: config.yaml and safetensors |

Reading needs no converting: every command that takes a graph or a dictionary opens these forms itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..saes.errors import UserError

TARGETS = ("neuronpedia", "circuit_tracer")


def convert(src: Path, dst: Path, to: str) -> dict[str, Any]:
    """Write what is at `src` to `dst` in the form of `to`; tells what a reader of that form will not see.

    UserError for another target, and for what the form cannot hold.
    """
    if to not in TARGETS:
        raise UserError(f"expected --to {' or '.join(TARGETS)}; got {to}; this version writes no other form")
    return _graph(src, dst) if to == "neuronpedia" else _transcoders(src, dst)


def _graph(src: Path, dst: Path) -> dict[str, Any]:
    from ..circuits.exchange.files import open_graph, write_graph_json
    from ..circuits.exchange.neuronpedia import lost

    graph = open_graph(src)
    write_graph_json(graph, dst)
    return {"out": str(dst), "nodes": len(graph), "edges": len(graph.edges.weight), "lost": lost(graph)}


def _transcoders(src: Path, dst: Path) -> dict[str, Any]:
    from ..circuits.exchange.transcoders import open_dictionaries
    from ..circuits.exchange.transcoders_write import save_transcoders
    from ..circuits.parts import parts

    if src.is_file():
        raise UserError(
            f"expected dictionary folders for --to circuit_tracer; {src} is a file; circuit-tracer's graphs are pickles: "
            "use --to neuronpedia for a graph"
        )
    found = parts(open_dictionaries(src))
    save_transcoders(found, dst)
    return {"out": str(dst), "layers": [part.layer for part in found], "latents": [part.latents for part in found]}
