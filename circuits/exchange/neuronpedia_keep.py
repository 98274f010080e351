"""A document that others made, kept beside its Graph so that writing it gives it back.

`remember` stores what a Graph has no place for, as plain JSON in `graph.metadata["neuronpedia"]`:

    document    everything but nodes and links            records   the JSON nodes, whole, in their order
    order       number of the JSON node of each node      links     numbers of source and target, flat, in their order
    odd         links that an edge cannot give back exactly (other keys, repeated, a weight written as 3), by number

`rewrite` writes the graph as it is now into that document. Each node is matched with its JSON node: equal ones first, then by
kind, layer, position, index and site; a matched one changes only where the Graph's node differs from what had been read
(label, value, weight). Nodes and links that are gone are left out, new ones come in our own form; pins and supernodes
lose what is gone, and where QK results name a node that is gone, its description moves to `qk_only_nodes`. In a document
of ours the entries `unweave` are brought up to date.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable
from typing import Any

import torch

from ...saes.errors import UserError
from ..graph import Graph, Node
from .json_check import check_json
from .neuronpedia_links import PLAIN, Links

DESCRIPTION = ("node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp", "activation")


def remember(document: dict[str, Any], order: list[int], links: Links, graph: Graph) -> dict[str, Any]:
    """The entry `neuronpedia` of the metadata of `graph`, whose nodes are the document's in this order."""
    position = {number: place for place, number in enumerate(order)}
    weights = _weights(graph)
    odd = {}
    pairs = list(zip(links.source, links.target, strict=True))
    times = Counter(pairs)
    for i, (written, (source, target)) in enumerate(zip(document["links"], pairs, strict=True)):
        weight = weights[position[source], position[target]]
        plain = written.keys() == PLAIN and type(written["weight"]) is float and written["weight"] == weight
        # A sum of weights may equal one of them, and 0.0 equals -0.0.
        if not plain or times[source, target] > 1 or not weight:
            odd[str(i)] = written
    return {
        "document": {**document, "nodes": [], "links": []},
        "records": document["nodes"],
        "order": order,
        "links": [end for pair in pairs for end in pair],
        "odd": odd,
    }


def rewrite(graph: Graph, options: dict[str, Any]) -> dict[str, Any]:
    """The remembered document with what the graph now holds; `options` replace entries of its metadata."""
    kept = graph.metadata["neuronpedia"]
    try:
        document = _rewrite(graph, kept, options)
    except UserError:
        raise
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise UserError(
            f"expected metadata['neuronpedia'] as from_neuronpedia left it; it is damaged ({error!r}); remove that entry"
        ) from error
    check_json({**document, "links": list(kept["odd"].values())}, "the graph")
    return document


def _rewrite(graph: Graph, kept: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    from .neuronpedia import ours
    from .neuronpedia_read import read_nodes

    records, document = kept["records"], kept["document"]
    start = read_nodes(records, document["metadata"]["prompt_tokens"])
    numbers = _match(graph, start, kept["order"])
    nodes, ids = _nodes(graph, records, start, numbers)
    gone = [records[i] for i in sorted(set(range(len(records))) - set(numbers))]
    out = document | {
        "metadata": document["metadata"] | options,
        "qParams": _state(graph, document["qParams"], records, numbers, ids, gone),
        "nodes": nodes,
        "links": _links(graph, kept, numbers, ids),
    }
    if gone and any("qk_tracing_results" in node for node in nodes):
        described = {node["node_id"]: {key: node[key] for key in DESCRIPTION if key in node} for node in gone}
        out["qk_only_nodes"] = described | document.get("qk_only_nodes", {})
    if isinstance(document.get("unweave"), dict) and document["unweave"].get("schema") == 1:
        out["unweave"] = ours(graph)
    return out


def _weights(graph: Graph) -> dict[tuple[int, int], float]:
    """Weight of every edge by (source, target)."""
    targets, sources, weights = (column.tolist() for column in graph.edges)
    return dict(zip(zip(sources, targets, strict=True), weights, strict=True))


def _match(graph: Graph, start: list[Node], order: list[int]) -> list[int]:
    """For every node of the graph the number of its JSON node, -1 for a new one; equal nodes are matched first."""
    numbers = [-1] * len(graph)
    for key in (tuple, _place):
        _match_by(key, graph, start, order, numbers)
    return numbers


def _match_by(
    key: Callable[[Node], tuple[Any, ...]], graph: Graph, start: list[Node], order: list[int], numbers: list[int]
) -> None:
    waiting: dict[Any, deque[int]] = defaultdict(deque)
    used = set(numbers)
    for number in order:
        if number not in used:
            waiting[key(start[number])].append(number)
    for i, node in enumerate(graph.nodes):
        if numbers[i] < 0 and waiting[key(node)]:
            numbers[i] = waiting[key(node)].popleft()


def _place(node: Node) -> tuple[Any, ...]:
    return node.kind, node.layer, node.position, node.index, node.site


def _nodes(
    graph: Graph, records: list[dict[str, Any]], start: list[Node], numbers: list[int]
) -> tuple[list[dict[str, Any]], list[str]]:
    """All JSON nodes, in their old order, a new one before what follows it; and the id of every node of the graph."""
    from .neuronpedia import node_record

    rows = graph.row_values.tolist()
    taken = {record["node_id"] for record in records}
    written: list[tuple[int, int, dict[str, Any]]] = []
    ids = []
    for i, (node, number) in enumerate(zip(graph.nodes, numbers, strict=True)):
        known = number >= 0
        record = _changed(records[number], start[number], node, rows[i]) if known else node_record(node, rows[i], taken)
        written.append((number, i, record))
        ids.append(record["node_id"])
    follower, placed = len(records), []
    for number, i, record in reversed(written):
        follower = number if number >= 0 else follower
        placed.append((follower, number >= 0, i, record))
    return [record for *_, record in sorted(placed, key=lambda entry: entry[:3])], ids


def _changed(record: dict[str, Any], start: Node, node: Node, row_value: float) -> dict[str, Any]:
    from .neuronpedia import clerp, our_node

    new = dict(record)
    if node.value != start.value:
        new["activation"] = node.value
    if node.weight != start.weight:
        new["token_prob"] = node.weight
    if node.label != start.label or (node.kind == "logit" and node.weight != start.weight):
        new["clerp"] = node.label if node.kind == "token" else clerp(node)
    if isinstance(record.get("unweave"), dict) and "kind" in record["unweave"]:
        new["unweave"] = record["unweave"] | our_node(node, row_value)
    return new


def _state(
    graph: Graph,
    state: dict[str, Any],
    records: list[dict[str, Any]],
    numbers: list[int],
    ids: list[str],
    gone: list[dict[str, Any]],
) -> dict[str, Any]:
    """A viewer's state without ids that are gone, and with the graph's supernodes."""
    from .neuronpedia import supernodes
    from .neuronpedia_read import groups_of

    new = dict(state)
    lost = {node["node_id"] for node in gone} - set(ids)
    if lost and isinstance(state.get("pinnedIds"), list):
        new["pinnedIds"] = [pin for pin in state["pinnedIds"] if pin not in lost]
    if isinstance(state.get("clickedId"), str) and state["clickedId"] in lost:
        new["clickedId"] = ""
    place: dict[str, int] = {}
    for i in sorted(range(len(ids)), key=lambda i: numbers[i]):
        place.setdefault(ids[i], i)
    groups = supernodes(graph)
    if lost or groups != groups_of(state, place):
        new["supernodes"] = [[label, *(ids[i] for i in members)] for label, *members in groups]
    return new


def _rounded(weight: float, graph: Graph) -> float:
    dtype = graph.edges.weight.dtype
    return weight if dtype == torch.float64 else float(torch.tensor(weight, dtype=dtype))


def _links(graph: Graph, kept: dict[str, Any], numbers: list[int], ids: list[str]) -> list[dict[str, Any]]:
    """The links that are left, in their old order, then new ones."""
    place = {number: i for i, number in enumerate(numbers) if number >= 0}
    ends = kept["links"]
    pairs = [
        (place.get(source, -1), place.get(target, -1)) for source, target in zip(ends[::2], ends[1::2], strict=True)
    ]
    weights, odd = _weights(graph), kept["odd"]
    sums: dict[Any, float] = defaultdict(float)
    for i, link in odd.items():
        sums[pairs[int(i)]] += float(link["weight"])
    written, out = set(), []
    for i, pair in enumerate(pairs):
        if pair not in weights:
            continue
        link = odd.get(str(i))
        if link is not None and _rounded(sums[pair], graph) == weights[pair]:
            out.append(link)
        elif pair not in written:
            out.append((link or {}) | {"source": ids[pair[0]], "target": ids[pair[1]], "weight": weights[pair]})
        written.add(pair)
    new = [pair for pair in weights if pair not in written]
    return out + [{"source": ids[s], "target": ids[t], "weight": weights[s, t]} for s, t in new]
