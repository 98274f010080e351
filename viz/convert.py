"""`unweave convert`: graphs and dictionaries in the forms of other tools.

| to | from | writes |
|---|---|---|
| neuronpedia | a graph (`.graph`, `.json`, `.json.gz`) | one JSON file for Neuronpedia's and circuit-tracer's viewers |
| circuit_tracer | dictionary folders, or one folder of them | a folder that circuit-tracer loads: config.yaml and safetensors |
| saelens, sparsify, dictionary_learning | a dictionary of any form (docs/formats.md), or its name on the hub | a folder that it loads |

Reading needs no converting: every command that takes a graph or a dictionary opens these forms itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..saes.errors import UserError

LIBRARIES = ("saelens", "sparsify", "dictionary_learning")
TARGETS = (*LIBRARIES, "circuit_tracer", "neuronpedia")


def convert(src: Path, dst: Path, to: str) -> dict[str, Any]:
    """Write what is at `src` to `dst` in the form of `to`; tells what a reader of that form will not see.

    UserError for another target, and for what the form cannot hold.
    """
    if to not in TARGETS:
        raise UserError(f"expected --to {', '.join(TARGETS)}; got {to}; no other form is written")
    if to in LIBRARIES:
        return _dictionary(src, dst, to)
    return _graph(src, dst) if to == "neuronpedia" else _transcoders(src, dst)


def _dictionary(src: Path, dst: Path, to: str) -> dict[str, Any]:
    from ..saes import Dictionary

    if src.name.endswith((".graph", ".json", ".json.gz")) and src.is_file():
        raise UserError(f"expected a dictionary for --to {to}; {src} is a graph; use --to neuronpedia")
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise UserError(f"expected a new or empty folder; {dst} is not; choose another name")
    # A path that is not here may be a name on the hub, which only text can be.
    dictionary = Dictionary.load(src if src.exists() else str(src))
    dictionary.save(dst, to)
    return {
        "out": str(dst),
        "dictionary": repr(dictionary),
        "fingerprint": dictionary.fingerprint,
        "lost": _lost(dictionary, to),
    }


def _lost(dictionary: Any, to: str) -> list[str]:
    """What only Unweave reads of the folder, from the keys that it keeps there."""
    config = dictionary.config
    kept = {
        "which tokens it was trained on": bool(dictionary.metadata.get("keep")),
        "widths of its nested prefixes": bool(config.matryoshka)
        and (to, config.activation) != ("dictionary_learning", "batch_topk"),
        "where it reads and writes": bool(config.site) and to != "saelens",
        "where it comes from": bool(dictionary.metadata),
    }
    return [name for name, holds in kept.items() if holds]


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
