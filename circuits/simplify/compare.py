"""Several graphs at once: merged, subtracted, or what they agree on.

Nodes of different graphs are one when kind, layer, site, index and aligned position agree (and the label, for what has no index and for
logits, which may be differences). `align` says which positions correspond:

    "position"   the same position counted from the start (logits, which all stand at the end, always correspond)
    "end"        the same position counted from the end: prompts of different lengths that end alike
    "none"       any position: a latent is one node wherever it is active, as if all its positions were a supernode
    mappings     one {position: common position} per graph

With coefficients c_g every weight, row value, node value and attribution of the result is sum_g c_g x_g, where a graph that lacks the
edge or node counts as 0. Each graph's rows sum to their values, so the result's do too:

* `merge`: c_g given, or 1/n, the mean. Over prompts: what a circuit does on average. Over models: what they share.
* `difference`: c = (1, -1). What is equal vanishes; a row says by which sources its value came to differ. Its logits keep the mean of
  their weights, so that influence, scores, pruning and paths work on what differs.
* `consensus`: the mean, on nodes that at least `share` of the graphs have and edges that at least `share` have with the same sign; all
  else is folded into the two rest leaves that pruning uses, so nothing opens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...saes.errors import UserError
from ..graph import TARGETS, Edges, Graph, Node
from .prune import fold, renumbered
from .scores import coalesce
from .supernodes import causal_order

Align = str | Sequence[Mapping[int, int]]
Key = tuple[str, int, str, int, int, str]  # kind, layer, site, index, common position, label


class _Union(NamedTuple):
    """All graphs on one list of nodes: per graph the place of each of its nodes, and its edges with repeats added."""

    nodes: list[Node]  # without amounts
    places: list[Int[Tensor, "node"]]
    edges: list[Edges]


def merge(graphs: Sequence[Graph], weights: Sequence[float] | None = None, *, align: Align = "position") -> Graph:
    """sum_g weights[g] x graph g on the union of their nodes; default the mean. `merge([g])` has g's nodes, edges and rows."""
    coefficients = [1 / len(graphs)] * len(graphs) if weights is None and graphs else list(weights or [])
    if len(coefficients) != len(graphs):
        raise UserError(f"expected one weight per graph ({len(graphs)}); got {len(coefficients)}; leave them out")
    union = _union(graphs, align)
    return _combine("merge", graphs, union, coefficients, coefficients)


def difference(a: Graph, b: Graph, *, align: Align = "position") -> Graph:
    """a - b, without the edges that are equal and the nodes at which nothing differs; empty for equal graphs."""
    union = _union([a, b], align)
    whole = _combine("difference", [a, b], union, [1.0, -1.0], [0.5, 0.5])
    edges = Edges(*(column[whole.edges.weight != 0] for column in whole.edges))
    used = whole.row_values.nan_to_num(0) != 0
    used[edges.target], used[edges.source] = True, True
    number = torch.full((len(whole),), -1, dtype=edges.target.dtype)
    number[used] = torch.arange(int(used.sum()), dtype=number.dtype)
    nodes = [node for node, stays in zip(whole.nodes, used.tolist(), strict=True) if stays]
    edges = Edges(number[edges.target], number[edges.source], edges.weight)
    metadata = whole.metadata | renumbered(whole.metadata, number.tolist())
    return Graph(nodes, edges, whole.row_values[used], metadata)


def consensus(graphs: Sequence[Graph], share: float = 1.0, *, align: Align = "position") -> Graph:
    """The mean graph where at least this share of the graphs agree; the remainder of each row is in two rest leaves."""
    if not 0 < share <= 1:
        raise UserError(f"expected a share above 0 and up to 1; got {share}; give for example 0.8")
    union = _union(graphs, align)
    mean = _combine("consensus", graphs, union, [1 / len(graphs)] * len(graphs), [1 / len(graphs)] * len(graphs))
    needed = share * len(graphs) - 1e-9
    present = torch.zeros(len(mean), dtype=torch.float64)
    for places in union.places:
        present[places.unique()] += 1
    kept = (present >= needed) & ~mean.is_kind("rest")
    signs = [Edges(one.target, one.source, one.weight.sign().double()) for one in union.edges]
    joined = [torch.cat(columns) for columns in zip(*signs, strict=True)]
    votes = [coalesce(joined[0], joined[1], side, len(mean)).weight for side in _sides(joined[2])]
    alive = (torch.maximum(*votes) >= needed) & kept[mean.edges.target] & kept[mean.edges.source]
    return fold(mean, kept, alive)


def _sides(sign: Float[Tensor, "edge"]) -> tuple[Float[Tensor, "edge"], Float[Tensor, "edge"]]:
    return sign.clamp(min=0), (-sign).clamp(min=0)


def _union(graphs: Sequence[Graph], align: Align) -> _Union:
    """Every graph's nodes placed in one causal order, which depends on no order of the graphs."""
    if not graphs:
        raise UserError("expected at least one graph; got none; give a list of graphs")
    keys = _keys(graphs, align)
    rank: dict[Key, list[float]] = {}
    for graph, own in zip(graphs, keys, strict=True):
        for i, key in enumerate(own):
            rank.setdefault(key, []).append(_stage(graph, i) + i / len(graph))
    order = sorted(rank, key=lambda key: (sum(rank[key]) / len(rank[key]), key))
    first = {key: number for number, key in enumerate(order)}
    dtype = torch.int32 if len(order) < 2**31 else torch.int64
    edges = [
        _placed(graph, torch.tensor([first[key] for key in own]), dtype)
        for graph, own in zip(graphs, keys, strict=True)
    ]
    target, source, weight = (torch.cat(columns) for columns in zip(*edges, strict=True))
    every = coalesce(target, source, weight, len(order))
    causal = causal_order(every, len(order), [_describe(key) for key in order], range(len(order)))
    place = torch.empty(len(order), dtype=torch.int64)
    place[causal] = torch.arange(len(order))
    labels = {key: graph.nodes[i].label for graph, own in zip(graphs, keys, strict=True) for i, key in enumerate(own)}
    nodes = [
        Node(kind, layer, position, index, 0.0, labels[key], site=site)
        for key in (order[i] for i in causal)
        for kind, layer, site, index, position, _ in (key,)
    ]
    places = [place[[first[key] for key in own]] for own in keys]
    return _Union(nodes, places, [_placed(graph, own, dtype) for graph, own in zip(graphs, places, strict=True)])


def _stage(graph: Graph, i: int) -> int:
    """Leaves first, targets last."""
    return 2 if graph.nodes[i].kind in TARGETS else 0 if graph.row_values[i].isnan() else 1


def _placed(graph: Graph, places: Int[Tensor, "node"], dtype: torch.dtype) -> Edges:
    target, source = (places.to(dtype)[column] for column in (graph.edges.target, graph.edges.source))
    return coalesce(target, source, graph.edges.weight, int(places.max()) + 1 if len(places) else 1)


def _describe(key: Key) -> str:
    return f"{key[0]} {key[3]} of layer {key[1]}" if key[3] >= 0 else key[5] or f"{key[0]} of layer {key[1]}"


def _keys(graphs: Sequence[Graph], align: Align) -> list[list[Key]]:
    lengths = [_length(graph) for graph in graphs]
    if isinstance(align, str):
        if align not in ("position", "end", "none"):
            raise UserError(
                f"expected align 'position', 'end', 'none' or a mapping per graph; got {align!r}; choose one"
            )
        moves = [max(lengths) - length if align == "end" else 0 for length in lengths]
        maps = [
            {p: -1 if align == "none" else p + move for p in range(n)} for n, move in zip(lengths, moves, strict=True)
        ]
    else:
        maps = [dict(mapping) for mapping in align]
        if len(maps) != len(graphs):
            raise UserError(f"expected a mapping of positions per graph ({len(graphs)}); got {len(maps)}; give all")
    last = max(max(mapping.values(), default=-1) for mapping in maps)
    return [[_key(node, mapping, last) for node in graph.nodes] for graph, mapping in zip(graphs, maps, strict=True)]


def _length(graph: Graph) -> int:
    return max([len(graph.metadata.get("tokens", [])), *(node.position + 1 for node in graph.nodes)])


def _key(node: Node, mapping: Mapping[int, int], last: int) -> Key:
    if node.position >= 0 and node.kind not in TARGETS and node.position not in mapping:
        raise UserError(f"expected a mapping for every position; got none for {node.position}; add it")
    position = last if node.kind in TARGETS else -1 if node.position < 0 else mapping[node.position]
    label = node.label if node.kind in TARGETS or node.index < 0 else ""
    return node.kind, node.layer, node.site, node.index, position, label


def _combine(
    name: str, graphs: Sequence[Graph], union: _Union, coefficients: Sequence[float], of_weights: Sequence[float]
) -> Graph:
    """sum_g c_g graph_g; target weights with coefficients of their own."""
    count = len(union.nodes)
    amounts = torch.zeros(count, 4, dtype=torch.float64)
    has_row = torch.zeros(count, dtype=torch.bool)
    for graph, places, c, of_weight in zip(graphs, union.places, coefficients, of_weights, strict=True):
        own = [graph.column(field) for field in ("value", "attribution", "weight")]
        factors = torch.tensor([c, c, of_weight, c], dtype=torch.float64)
        amounts.index_add_(0, places, torch.stack([*own, graph.row_values.double().nan_to_num(0)], 1) * factors)
        has_row[places[~graph.row_values.isnan()]] = True
    target, source = (torch.cat([edges[field] for edges in union.edges]) for field in (0, 1))
    weight = torch.cat([edges.weight.double() * c for edges, c in zip(union.edges, coefficients, strict=True)])
    edges = coalesce(target, source, weight, count)
    dtype = max((graph.edges.weight.dtype for graph in graphs), key=lambda dtype: dtype.itemsize)
    value, attribution, share, row = amounts.T.tolist()
    nodes = [
        node._replace(value=value[i], attribution=attribution[i], weight=share[i]) for i, node in enumerate(union.nodes)
    ]
    rows = torch.where(has_row, torch.tensor(row, dtype=torch.float64), torch.nan).to(graphs[0].row_values)
    return Graph(
        nodes, edges._replace(weight=edges.weight.to(dtype)), rows, _metadata(name, graphs, union.places, coefficients)
    )


def _metadata(
    name: str, graphs: Sequence[Graph], places: list[Tensor], coefficients: Sequence[float]
) -> dict[str, Any]:
    """What all graphs say alike, their supernodes, and what they were; `places` as in `_Union`."""
    first = graphs[0].metadata
    common = {key: value for key, value in first.items() if all(graph.metadata.get(key) == value for graph in graphs)}
    common.pop("supernodes", None)
    groups: dict[str, list[int]] = {}
    taken: set[int] = set()
    for graph, own in zip(graphs, places, strict=True):
        for label, *nodes in renumbered(graph.metadata, own.tolist()).get("supernodes", []):
            groups.setdefault(label, []).extend(node for node in nodes if node not in taken)
            taken.update(nodes)
    prompts = [graph.metadata.get("prompt", "") for graph in graphs]
    common["compared"] = {"by": name, "prompts": prompts, "weights": list(coefficients)}
    common.setdefault("prompt", " | ".join(dict.fromkeys(prompts)))
    return common | ({"supernodes": [[label, *nodes] for label, nodes in groups.items() if nodes]} if groups else {})
