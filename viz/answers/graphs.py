"""Circuits: the drawn nodes and edges, their strongest partners, scores, paths."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...circuits import Edges, Graph, Node
from ..circuit import STYLES, column_name
from ..layout import draw
from ..text import jsonable, number, readable, visible
from ..things import flat
from .registry import nth, path

if TYPE_CHECKING:
    from ..things import Things

PARTNERS = 8  # incoming and outgoing edges listed for a drawn node


@path(r"graphs/(\d{1,6})")
def graph(things: Things, place: int) -> dict[str, Any]:
    """The circuit at a place, with the open stores that show its latents."""
    found = nth(list(things.graphs.values()), place)
    return graph_payload(found) | {"stores": stores_by_layer(things, found)}


def stores_by_layer(things: Things, graph: Graph) -> dict[str, int]:
    """Layer → number of the open store that shows that layer's latents, by the dictionary's fingerprint."""
    fingerprints = [set(map(str, flat(store.manifest).values())) for store in things.stores.values()]
    found = {}
    for reference in graph.metadata.get("dictionaries") or []:
        layer = re.search(r"\.(\d+)\.", str(reference.get("site", "")))
        place = next((i for i, known in enumerate(fingerprints) if str(reference.get("fingerprint")) in known), None)
        if layer and place is not None:
            found[layer[1]] = place
    return found


def graph_payload(graph: Graph, *, nodes: int = 120, edges: int = 400) -> dict[str, Any]:
    """A circuit: the drawn nodes with coordinates, drawn edges, each drawn node's strongest partners, scores and paths.

    A partner that is not drawn stands in `nodes` without coordinates.
    """
    drawing = draw(graph, nodes, edges)
    partners = _partners(graph, drawing.nodes)
    mentioned = {item for pair in partners.values() for side in pair for item, _ in side}
    paths = _paths(graph)
    mentioned |= {item for path in paths for item in path["nodes"]} | set(drawing.nodes)
    described = {item: _node(graph.nodes[item], float(drawing.influence[item])) for item in sorted(mentioned)}
    for item in drawing.nodes:
        incoming, outgoing = partners[item]
        described[item] |= {"x": drawing.x[item], "y": drawing.y[item], "incoming": incoming, "outgoing": outgoing}
    tokens = graph.metadata.get("token_strings", [])
    return {
        "prompt": readable(graph.metadata.get("prompt", ""), 400),
        "nodes": described,
        "edges": [[edge.target, edge.source, number(edge.weight), number(edge.strength, 3)] for edge in drawing.edges],
        "columns": [
            {"x": x, "width": width, "position": place, "token": "—" if place is None else column_name(tokens, place)}
            for x, width, place in drawing.columns
        ],
        "rows": [{"y": y, "label": label} for y, label in drawing.rows],
        "kinds": {kind: name for kind, (_, _, name) in STYLES.items()},
        "residual": number(graph.residual, 3),
        "paths": paths,
        **_scores(graph),
        "counts": {"nodes": len(graph.nodes), "edges": len(graph.edges.weight)},
        "metadata": jsonable({key: value for key, value in graph.metadata.items() if key != "neuronpedia"}),
    }


def _scores(graph: Graph) -> dict[str, Any]:
    scores = graph.scores()._asdict()
    shares = scores.pop("leaf_shares")
    return {
        "scores": {name: number(value) for name, value in scores.items()},
        "leaf_shares": {kind: number(share) for kind, share in shares.items()},
    }


def _node(node: Node, share: float) -> dict[str, Any]:
    return {
        "kind": node.kind,
        "layer": node.layer,
        "position": node.position,
        "index": node.index,
        "value": number(node.value),
        "label": visible(node.label, 80),
        "influence": number(share, 3),
        "attribution": number(node.attribution, 3),
    }


def _partners(graph: Graph, drawn: list[int]) -> dict[int, tuple[list[list[Any]], list[list[Any]]]]:
    """For each drawn node its heaviest incoming and outgoing edges as [partner, weight]; one pass over the edges."""
    wanted = torch.zeros(len(graph), dtype=torch.bool)
    wanted[drawn] = True
    out = Edges(*(column[wanted[graph.edges.source]] for column in graph.edges))
    order = out.source.argsort(stable=True)
    ids = torch.tensor(drawn, dtype=torch.int64)
    incoming = _heaviest(graph.edges.target, graph.edges.source, graph.edges.weight, ids)  # edges are ordered by target
    outgoing = _heaviest(out.source[order], out.target[order], out.weight[order], ids)
    return {item: (incoming[place], outgoing[place]) for place, item in enumerate(drawn)}


def _heaviest(mine: Tensor, partner: Tensor, weight: Tensor, ids: Tensor) -> list[list[list[Any]]]:
    starts, ends = torch.searchsorted(mine, ids), torch.searchsorted(mine, ids, right=True)
    lists = []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        best = start + weight[start:end].abs().argsort(descending=True, stable=True)[:PARTNERS]
        lists.append(
            [[item, number(value)] for item, value in zip(partner[best].tolist(), weight[best].tolist(), strict=True)]
        )
    return lists


def _paths(graph: Graph) -> list[dict[str, Any]]:
    if not graph.targets:
        return []
    return [
        {
            "nodes": list(path.nodes),
            "weights": [number(weight, 3) for weight in path.weights],
            "strength": number(path.strength, 3),
        }
        for path in graph.paths(5)
    ]
