"""Graph files: one safetensors file, tensors exact, JSON in its header, so that opening a stranger's graph runs nothing.

Keys are in docs/formats.md. What is read is checked before it becomes a Graph: lengths, types, causal order, finite weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..saes.errors import UserError
from ..saes.io import write_tensors
from .graph import KINDS, Edges, Graph, Node

SCHEMA = 2
READABLE = (1, 2)  # schema 1 had no sites and 64-bit indices


def write(graph: Graph, path: Path) -> Path:
    """Write `graph` atomically."""
    codes = torch.tensor([KINDS.index(node.kind) for node in graph.nodes], dtype=torch.uint8)
    numbers = torch.tensor([node[1:4] for node in graph.nodes], dtype=torch.int64).reshape(-1, 3)
    reals = torch.tensor(
        [(node.value, node.attribution, node.weight) for node in graph.nodes], dtype=torch.float64
    ).reshape(-1, 3)
    tensors = {"kind": codes, "place": numbers, "amount": reals, "row_values": graph.row_values}
    tensors |= {"target": graph.edges.target, "source": graph.edges.source, "weight": graph.edges.weight}
    header = {"schema": SCHEMA, "labels": [node.label for node in graph.nodes], "metadata": graph.metadata}
    header["sites"] = [node.site for node in graph.nodes]
    write_tensors(path, tensors, {"unweave_graph": json.dumps(header)})
    return path


def read(path: Path) -> Graph:
    """Read a graph; UserError when it is missing, truncated, of another kind, or inconsistent."""
    tensors, header = _read(path)
    try:
        return _rebuild(tensors, header)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"expected a graph file at {path}; its contents do not fit together ({error}); trace it again"
        ) from error


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            header = json.loads((file.metadata() or {}).get("unweave_graph", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise UserError(
            f"expected a graph file at {path}; could not read it ({error}); check the path or trace it again"
        ) from error
    if not isinstance(header, dict) or header.get("schema") not in READABLE:
        raise UserError(f"expected a graph file of schema {SCHEMA} at {path}; got another kind of file; trace it again")
    return tensors, header


def _rebuild(tensors: dict[str, Tensor], header: dict[str, Any]) -> Graph:
    labels, kinds = header["labels"], tensors["kind"].tolist()
    places, amounts = tensors["place"], tensors["amount"]
    edges = Edges(tensors["target"], tensors["source"], tensors["weight"])
    count = len(kinds)
    sites = header.get("sites", [""] * count)
    _require(isinstance(header["metadata"], dict), "metadata is not an object")
    _require(
        isinstance(labels, list) and len(labels) == count and all(isinstance(label, str) for label in labels),
        "labels and nodes differ",
    )
    _require(
        isinstance(sites, list) and len(sites) == count and all(isinstance(site, str) for site in sites),
        "sites and nodes differ",
    )
    _require(
        places.shape == (count, 3) and amounts.shape == (count, 3) and tensors["row_values"].shape == (count,),
        "node tensors differ in length",
    )
    _require(not places.is_floating_point() and amounts.is_floating_point(), "a node tensor has the wrong type")
    _require(
        tensors["row_values"].is_floating_point() and edges.weight.is_floating_point(),
        "row values or weights are not real",
    )
    _require(
        edges.target.shape == edges.source.shape == edges.weight.shape and edges.weight.ndim == 1,
        "edge tensors differ in length",
    )
    _require(
        edges.target.dtype == edges.source.dtype and edges.target.dtype in (torch.int32, torch.int64),
        "edge indices are not whole",
    )
    if len(edges.weight):
        ordered = bool((edges.source < edges.target).all())
        _require(
            ordered and int(edges.source.min()) >= 0 and int(edges.target.max()) < count,
            "edges are not in causal order",
        )
        _require(bool(edges.weight.isfinite().all()), "an edge is not finite")
    table = zip(kinds, places.tolist(), amounts.tolist(), labels, sites, strict=True)
    nodes = [
        Node(KINDS[kind], layer, position, index, value, label, attribution, weight, site)
        for kind, (layer, position, index), (value, attribution, weight), label, site in table
    ]
    return Graph(nodes, edges, tensors["row_values"], header["metadata"])


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
