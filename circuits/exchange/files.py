"""Graph files of any form: ours (`.graph`), and JSON of Neuronpedia's form (`.json`, `.json.gz`).

circuit-tracer's own graph files (`.pt`) are pickles, which can run code when they are opened. They are refused; its
`create_graph_files` writes the same graph as JSON.
"""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

from ...saes.errors import UserError
from ...saes.io import atomic_path
from ..graph import Graph

LARGEST = 1 << 31  # bytes of JSON after decompression
JSON_ENDINGS, PICKLES = (".json", ".json.gz"), (".pt", ".pth", ".pkl", ".pickle")


def open_graph(path: str | Path) -> Graph:
    """Read a graph of any form by its ending; what has none of the above is read as ours. UserError for the rest."""
    path = Path(path)
    if path.name.endswith(PICKLES):
        raise UserError(
            f"expected a .graph or .json file; {path} is a pickle, which can run code when it is opened; export it where it was "
            "made: circuit_tracer.utils.create_graph_files(graph, slug, folder) writes slug.json"
        )
    return Graph.from_neuronpedia(_read(path)) if path.name.endswith(JSON_ENDINGS) else Graph.load(path)


def write_graph_json(graph: Graph, path: str | Path, **options: object) -> Path:
    """Write `graph.to_neuronpedia(**options)`, atomically; compressed where the name ends in .gz, always to the same bytes."""
    path = Path(path)
    if not path.name.endswith(JSON_ENDINGS):
        raise UserError(f"expected a file name that ends in .json or .json.gz; got {path.name}; rename it")
    text = json.dumps(graph.to_neuronpedia(**options), allow_nan=False).encode()
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(text, mtime=0) if path.name.endswith(".gz") else text)
    return path


def _read(path: Path) -> dict:
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise UserError(f"expected at most {LARGEST >> 20} MiB of JSON; {path} holds more; prune the graph first")
        return json.loads(text)
    except UserError:
        raise
    except (OSError, ValueError, EOFError, zlib.error, RecursionError) as error:
        raise UserError(f"expected a graph's JSON at {path}; could not read it ({error}); check the path") from error
