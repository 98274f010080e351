"""Circuits: the drawn nodes and edges, their strongest partners, scores, paths, and the view that was saved beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ...circuits import Graph
from ...circuits.simplify.scores import into
from ..circuit import STYLES, column_name
from ..layout import draw, token_strings
from ..text import jsonable, number, readable
from .graph_groups import metadata_groups
from .graph_nodes import described, graph_at, partners, store_places
from .registry import path
from .views import graph_file, read_view

if TYPE_CHECKING:
    from ..things import Things

DRAWN, LARGEST = 120, 1500  # nodes of a picture unless asked otherwise, and at most
EDGES_PER_NODE = 50  # bound on the edges that are sent; a picture shows only the strongest of them
PATHS = 8


@path(r"graphs/(\d{1,6})")
def graph(things: Things, place: int) -> dict[str, Any]:
    """The circuit at a place, with the open stores that show its latents."""
    return drawn(things, place, DRAWN)


@path(r"graphs/(\d{1,6})/drawn/(\d{1,6})")
def drawn(things: Things, place: int, nodes: int) -> dict[str, Any]:
    """The same with that many nodes in the picture, up to `LARGEST`."""
    found = graph_at(things, place)
    count = min(max(nodes, 1), LARGEST)
    payload = graph_payload(found, things, nodes=count, edges=EDGES_PER_NODE * count)
    stores = {layer: store for layer, store in store_places(things, found).items() if layer.isdecimal()}
    return payload | {"stores": stores, "has_file": graph_file(things, place) is not None}


@path(r"graphs/(\d{1,6})/view")
def view(things: Things, place: int) -> dict[str, Any]:
    """The view that was saved beside the circuit's file: pins, groups, threshold; {} where there is none."""
    return read_view(graph_at(things, place), graph_file(things, place))


@path(r"graphs/(\d{1,6})/labels")
def labels(things: Things, place: int) -> dict[str, Any]:
    """What people call the circuit's latents in the open stores, by node."""
    found = graph_at(things, place)
    stores, opened = store_places(things, found), list(things.stores.values())
    said: dict[str, Any] = {}
    for item in found.of_kind("latent").tolist():
        one = found.nodes[item]
        store = stores.get(one.site, stores.get(str(one.layer)))
        if store is not None and 0 <= one.index < len(opened[store]) and (label := opened[store].label(one.index)):
            said[str(item)] = readable(label, 80)
    return said


def graph_payload(
    graph: Graph, things: Things | None = None, *, nodes: int = DRAWN, edges: int = EDGES_PER_NODE * DRAWN
) -> dict[str, Any]:
    """A circuit: the drawn nodes with coordinates, edges among them, each drawn node's strongest partners, scores and paths.

    Edges are [target, source, weight, strength], the strongest first; `is_whole` says that they are all there are among the
    drawn nodes. A drawn node's `row` is the sum of |weights| of its whole row. A partner that is not drawn stands in `nodes`
    without coordinates.
    """
    drawing = draw(graph, nodes, edges)
    known = partners(graph, drawing.nodes)
    mentioned = {item for pair in known.values() for side in pair for item, _ in side}
    paths = _paths(graph)
    mentioned |= {item for path in paths for item in path["nodes"]} | set(drawing.nodes)
    table = described(things, graph, mentioned, drawing.influence)
    mass = into(graph.edges.target, graph.edges.weight.abs(), len(graph))
    for item in drawing.nodes:
        incoming, outgoing = known[item]
        table[item] |= {"x": drawing.x[item], "y": drawing.y[item], "row": number(float(mass[item]))}
        table[item] |= {"incoming": incoming, "outgoing": outgoing}
    tokens = token_strings(graph)
    return {
        "prompt": readable(graph.metadata.get("prompt", ""), 400),
        "nodes": table,
        "edges": [[edge.target, edge.source, number(edge.weight), number(edge.strength, 3)] for edge in drawing.edges],
        "is_whole": len(drawing.edges) == _among(graph, drawing.nodes),
        "columns": [
            {"x": x, "width": width, "position": place, "token": "—" if place is None else column_name(tokens, place)}
            for x, width, place in drawing.columns
        ],
        "rows": [{"y": y, "label": label} for y, label in drawing.rows],
        "kinds": {kind: name for kind, (_, _, name) in STYLES.items()},
        "targets": [[item, number(graph.nodes[item].weight, 3)] for item in graph.targets],
        "groups": metadata_groups(graph),
        "has_heads": bool(graph.metadata.get("heads")),
        "residual": number(graph.residual, 3),
        "paths": paths,
        **_scores(graph),
        "counts": {"nodes": len(graph.nodes), "edges": len(graph.edges.weight), "drawn": len(drawing.nodes)},
        "metadata": jsonable({key: value for key, value in graph.metadata.items() if key not in LONG}),
    }


LONG = ("neuronpedia", "heads", "supernodes")  # metadata with answers of their own


def _among(graph: Graph, chosen: list[int]) -> int:
    drawn = torch.zeros(len(graph), dtype=torch.bool)
    drawn[chosen] = True
    return int((drawn[graph.edges.target] & drawn[graph.edges.source]).sum())


def _scores(graph: Graph) -> dict[str, Any]:
    scores = graph.scores()._asdict()
    shares = scores.pop("leaf_shares")
    return {
        "scores": {name: number(value) for name, value in scores.items()},
        "leaf_shares": {kind: number(share) for kind, share in shares.items()},
    }


def _paths(graph: Graph) -> list[dict[str, Any]]:
    if not graph.targets:
        return []
    return [
        {
            "nodes": list(path.nodes),
            "weights": [number(weight, 3) for weight in path.weights],
            "strength": number(path.strength, 3),
        }
        for path in graph.paths(PATHS)
    ]
