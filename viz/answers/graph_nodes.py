"""Nodes of a circuit in words and numbers: one node with its strongest partners, and those that a search finds."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...circuits import Edges, Graph, Node
from ..layout import flow, token_strings
from ..text import number, readable, visible
from ..things import flat
from .registry import nth, path

if TYPE_CHECKING:
    from ..things import Things

PARTNERS = 8  # incoming and outgoing edges listed for a node
FOUND = 60  # nodes that a search lists


def graph_at(things: Things, place: int) -> Graph:
    """The circuit at a place; KeyError where there is none."""
    return nth(list(things.graphs.values()), place)


@path(r"graphs/(\d{1,6})/nodes/(\d{1,9})")
def node(things: Things, place: int, item: int) -> dict[str, Any]:
    """Any node, drawn or not: `nodes` describes it and its partners; of its own number, with both lists of partners."""
    graph = graph_at(things, place)
    nth(graph.nodes, item)
    incoming, outgoing = partners(graph, [item], 4 * PARTNERS)[item]
    nodes = described(things, graph, {item, *(other for other, _ in incoming + outgoing)}, flow(graph))
    nodes[item] |= {"incoming": incoming, "outgoing": outgoing}
    return {"nodes": nodes}


@path(r"graphs/(\d{1,6})/find/(.{1,200})")
def find(things: Things, place: int, query: str) -> dict[str, Any]:
    """Nodes in which every word of the query is found, most influential first.

    A word is part of the label, a kind, a layer (`L12`) or part of the token at the node's position (`@Paris`).
    """
    graph = graph_at(things, place)
    through = flow(graph)
    words = query.lower().split()
    tokens = [token.lower() for token in token_strings(graph)]
    hits = [item for item, one in enumerate(graph.nodes) if all(_has(one, word, tokens) for word in words)]
    hits.sort(key=lambda item: -float(through[item]))
    return {
        "total": len(hits),
        "ids": hits[:FOUND],
        "nodes": described(things, graph, hits[:FOUND], through),
    }


def _has(one: Node, word: str, tokens: list[str]) -> bool:
    if layer := re.fullmatch(r"l(\d{1,4})", word):
        return one.layer == int(layer[1])
    if word.startswith("@") and len(word) > 1:
        return 0 <= one.position < len(tokens) and word[1:] in tokens[one.position]
    return word in one.label.lower() or word == one.kind


def described(things: Things | None, graph: Graph, items: Iterable[int], through: Tensor) -> dict[int, dict[str, Any]]:
    """Nodes for the page, by number: where each is, what it is called, its value, influence and signed attribution.

    A latent that an open store shows has that store's number as `store`.
    """
    stores = {} if things is None else store_places(things, graph)
    return {item: _described(graph.nodes[item], float(through[item]), stores) for item in sorted(items)}


def _described(one: Node, share: float, stores: dict[str, int]) -> dict[str, Any]:
    found = {
        "kind": readable(one.kind, 40),
        "layer": one.layer,
        "position": one.position,
        "index": one.index,
        "value": number(one.value),
        "label": visible(one.label, 80),
        "influence": number(share, 3),
        "attribution": number(one.attribution, 3),
    }
    store = stores.get(one.site, stores.get(str(one.layer))) if one.kind == "latent" else None
    return found if store is None else found | {"store": store}


def store_places(things: Things, graph: Graph) -> dict[str, int]:
    """Site, and layer, → number of the open store that shows the latents there, by the dictionary's fingerprint."""
    fingerprints = [set(map(str, flat(store.manifest).values())) for store in things.stores.values()]
    found: dict[str, int] = {}
    references = graph.metadata.get("dictionaries")
    for reference in references if isinstance(references, list) else []:
        if not isinstance(reference, dict):
            continue
        site = str(reference.get("site", ""))
        place = next((i for i, known in enumerate(fingerprints) if str(reference.get("fingerprint")) in known), None)
        if place is not None:
            layer = re.search(r"\.(\d+)\.", site)
            found |= {site: place} | ({layer[1]: place} if layer else {})
    return found


def partners(graph: Graph, chosen: list[int], most: int = PARTNERS) -> dict[int, tuple[list[Any], list[Any]]]:
    """For each chosen node (ascending) its heaviest incoming and outgoing edges as [partner, weight]; one pass over the edges."""
    wanted = torch.zeros(len(graph), dtype=torch.bool)
    wanted[chosen] = True
    out = Edges(*(column[wanted[graph.edges.source]] for column in graph.edges))
    order = out.source.argsort(stable=True)
    ids = torch.tensor(chosen, dtype=graph.edges.target.dtype)
    incoming = _heaviest(graph.edges.target, graph.edges.source, graph.edges.weight, ids, most)  # ordered by target
    outgoing = _heaviest(out.source[order], out.target[order], out.weight[order], ids, most)
    return {item: (incoming[place], outgoing[place]) for place, item in enumerate(chosen)}


def _heaviest(mine: Tensor, partner: Tensor, weight: Tensor, ids: Tensor, most: int) -> list[list[list[Any]]]:
    starts, ends = torch.searchsorted(mine, ids), torch.searchsorted(mine, ids, right=True)
    lists = []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        best = start + weight[start:end].abs().argsort(descending=True, stable=True)[:most]
        lists.append(
            [[item, number(value)] for item, value in zip(partner[best].tolist(), weight[best].tolist(), strict=True)]
        )
    return lists
