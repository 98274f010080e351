"""Groups of a circuit's nodes: those its file names, those that are found, and the graph of what a reader pinned.

The pinned graph keeps the pinned nodes, folds everything else into two leaves by sign (circuits/simplify/prune.py), and joins
each group by the rules of circuits/simplify/supernodes.py: summed weights, and beside them the published viewers' shares.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ...circuits import Edges, Graph, Supernode, quality, supernode_weights
from ...circuits.simplify.prune import fold
from ...circuits.simplify.supernodes import check
from ...saes.errors import UserError
from ..layout import draw, flow
from ..text import number, readable, visible
from .graph_nodes import described, graph_at
from .registry import nth, path

if TYPE_CHECKING:
    from ..things import Things

PINNED = 300  # nodes that one pinned graph holds at most


@path(r"graphs/(\d{1,6})/groups")
def groups(things: Things, place: int) -> dict[str, Any]:
    """Groups found among the features of the picture (circuits/simplify/grouping.py), and how much of the graph they leave."""
    graph = graph_at(things, place)
    drawn = draw(graph).nodes
    small, numbers = _folded(graph, drawn)
    try:
        found = small.supernodes()
    except UserError as error:
        return {"groups": [], "quality": None, "why": readable(error, 400)}
    named = [[visible(one.label, 80), *(numbers[item] for item in one.nodes)] for one in found]
    return {"groups": named, "quality": number(quality(small, found), 3), "why": ""}


def metadata_groups(graph: Graph) -> list[list[Any]]:
    """The supernodes of the graph's own metadata as [label, node, …]; [] where the file holds something else there."""
    entry = graph.metadata.get("supernodes")
    try:
        named = [Supernode(str(label), tuple(nodes)) for label, *nodes in entry or []]
        check(graph, named)
    except (UserError, TypeError, ValueError):
        return []
    return [[visible(one.label, 80), *one.nodes] for one in named]


@path(r"graphs/(\d{1,6})/pinned/(\d{1,9}(?:[,-]\d{1,9}){0,299})")
def pinned(things: Things, place: int, items: str) -> dict[str, Any]:
    """The graph of pinned items, separated by `,`; an item of several nodes joined by `-` is a group.

    edges: [target item, source item, summed weight, share of the target's row as the published viewers count it]; rows: of
    each item the sum of what other pinned items give it, and what all else raises and lowers it by; scores: of the graph
    with only the pinned features. `why` says what forbids a group.
    """
    graph = graph_at(things, place)
    groups = [[int(item) for item in part.split("-")] for part in items.split(",")]
    members = [item for group in groups for item in group]
    for item in members:
        nth(graph.nodes, item)
    answer: dict[str, Any] = {
        "items": groups,
        "nodes": described(things, graph, set(members), flow(graph)),
        "edges": [],
        "rows": [],
        "scores": {},
        "why": "",
    }
    try:
        return answer | _joined(graph, groups)
    except UserError as error:
        return answer | {"why": readable(error, 400)}


def _joined(graph: Graph, groups: list[list[int]]) -> dict[str, Any]:
    bare = Graph(list(graph.nodes), graph.edges, graph.row_values, {})
    check(bare, [Supernode(f"group {place + 1}", tuple(group)) for place, group in enumerate(groups)])
    members = sorted(item for group in groups for item in group)
    small, numbers = _folded(graph, members)
    place_of = {item: place for place, item in numbers.items()}
    item_of = {item: number for number, group in enumerate(groups) for item in group}
    names = [f"{visible(graph.nodes[group[0]].label, 40)} ({number + 1})" for number, group in enumerate(groups)]
    labels = {place: names[item_of[item]] for place, item in numbers.items()}
    nodes = [one._replace(label=labels.get(place, one.label)) for place, one in enumerate(small.nodes)]
    joined = [Supernode(names[item_of[group[0]]], tuple(place_of[i] for i in group)) for group in groups]
    small = Graph(nodes, small.edges, small.row_values, {}).group([one for one in joined if len(one.nodes) > 1])
    whole, shares = small.collapse(), supernode_weights(small)
    at = {name: number for number, name in enumerate(names)}
    columns = (whole.edges.target, whole.edges.source, whole.edges.weight, shares.weight)
    edges, rows = [], [[0.0, 0.0, 0.0] for _ in groups]
    for target, source, weight, share in zip(*(column.tolist() for column in columns), strict=True):
        item, giver = at[whole.nodes[target].label], at.get(whole.nodes[source].label)
        if giver is None:
            rows[item][1 if weight > 0 else 2] += weight
        else:
            rows[item][0] += weight
            edges.append([item, giver, number(weight), number(share)])
    scores = graph.scores([item for item in members if graph.nodes[item].is_feature])._asdict()
    scores.pop("leaf_shares")
    return {
        "edges": edges,
        "rows": [[number(value) for value in row] for row in rows],
        "scores": {name: number(value) for name, value in scores.items()},
    }


def _folded(graph: Graph, members: list[int]) -> tuple[Graph, dict[int, int]]:
    """The graph on `members` (ascending), all else in two rest leaves; and the old number of each of its other nodes."""
    kept = torch.zeros(len(graph), dtype=torch.bool)
    kept[members] = True
    alive = kept[graph.edges.target] & kept[graph.edges.source]
    bare = Graph(list(graph.nodes), Edges(*graph.edges), graph.row_values, {})
    return fold(bare, kept, alive), dict(enumerate(members, 2))
