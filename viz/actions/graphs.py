"""What can be done with a circuit: save its view, test a selection in the model, look into an attention score."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch

from ...circuits import Graph, QKTable
from ...saes.errors import UserError
from ..answers.views import graph_file, save_view
from ..layout import token_strings
from ..text import jsonable, number, readable, visible
from .registry import action

if TYPE_CHECKING:
    from ..live import Live

SIDE = 12  # nodes of each side of a score's table
PAIRS = 30
SELECTED = 400  # features that one experiment takes at most


@action("view")
def view(live: Live, body: dict[str, Any]) -> dict[str, Any]:
    """{graph, view}: saves pins, groups and threshold beside the graph's file; tells the file's name."""
    graph, place = _graph(live, body)
    return {"saved": readable(save_view(graph, graph_file(live.things, place), body.get("view")).name)}


@action("validate")
def validate(live: Live, body: dict[str, Any]) -> dict[str, Any]:
    """{graph, nodes}: ablates these features in the model, one at a time and together, beside matched controls."""
    graph, place = _graph(live, body)
    nodes = body.get("nodes")
    if not isinstance(nodes, list) or not 0 < len(nodes) <= SELECTED:
        raise UserError(
            f"expected between 1 and {SELECTED} features to test; got {readable(nodes, 60)}; pin some features"
        )
    for item in nodes:
        if type(item) is not int or not 0 <= item < len(graph) or not graph.nodes[item].is_feature:
            raise UserError(f"expected features of this graph; got node {readable(item, 40)}; pin latents or neurons")
    return jsonable(live.validate(place, list(dict.fromkeys(nodes))))


@action("qk")
def qk(live: Live, body: dict[str, Any]) -> dict[str, Any]:
    """{graph, layer, head, query, key}: which pairs of nodes make this head's score there."""
    graph, place = _graph(live, body)
    layer, head, query, key = (_whole(body, name) for name in ("layer", "head", "query", "key"))
    return qk_payload(graph, live.qk(place, layer, head, query, key))


def qk_payload(graph: Graph, table: QKTable) -> dict[str, Any]:
    """A score as the page shows it: its strongest pairs, a table of the nodes that make most of each side, and one of positions.

    `cells` [query node, key node] and `places` [query position, key position] are contributions to the score; `cells` covers the
    listed nodes only, `places` sums to the score less ALiBi's term.
    """
    sides = [
        sorted(marginals.abs().argsort(descending=True, stable=True)[:SIDE].tolist())
        for marginals in (table.query_marginals(), table.key_marginals())
    ]
    query, key = _by_position(table, table.query_factors), _by_position(table, table.key_factors)
    tokens = token_strings(graph)
    return {
        "layer": table.layer,
        "head": table.head,
        "score": number(table.score),
        "cap": number(table.cap),
        "alibi": number(table.alibi),
        "sum": number(table.sum()),
        "pairs": [
            [_node(table, one.query, tokens), _node(table, one.key, tokens), number(one.contribution)]
            for one in table.pairs[:PAIRS]
        ],
        "query": [_node(table, item, tokens) for item in sides[0]],
        "key": [_node(table, item, tokens) for item in sides[1]],
        "cells": [[number(value) for value in row] for row in table.contributions(sides[0], sides[1]).tolist()],
        "query_places": [_place(tokens, position) for position in query],
        "key_places": [_place(tokens, position) for position in key],
        "places": [[number(float(a @ b)) for b in key.values()] for a in query.values()],
    }


def _by_position(table: QKTable, factors: torch.Tensor) -> dict[int, torch.Tensor]:
    """Factors summed over the nodes of each position (-1: of no position)."""
    members: dict[int, list[int]] = defaultdict(list)
    for item, one in enumerate(table.nodes):
        members[one.position].append(item)
    return {position: factors[items].sum(0) for position, items in sorted(members.items())}


def _node(table: QKTable, item: int, tokens: list[str]) -> dict[str, Any]:
    """A node of a score's table; `node` is its number in the graph, None where the graph has folded it away."""
    one, number_ = table.nodes[item], table.graph_nodes[item]
    return {
        "node": number_ if number_ >= 0 else None,
        "kind": readable(one.kind, 40),
        "label": visible(one.label, 80),
        "place": _place(tokens, one.position),
    }


def _place(tokens: list[str], position: int) -> str:
    if position < 0:
        return "everywhere"
    return f"{visible(tokens[position], 24)} {position}" if position < len(tokens) else f"#{position}"


def _graph(live: Live, body: dict[str, Any]) -> tuple[Graph, int]:
    place = _whole(body, "graph")
    return live.graph(place), place


def _whole(body: dict[str, Any], name: str) -> int:
    value = body.get(name)
    if type(value) is not int:
        raise UserError(f"expected {name} as a whole number; got {readable(value, 40)}; send one")
    return value
