"""Prune a graph to the part that carries most of the influence, without opening the ledger.

1. Nodes: with influence I (scores.py), keep the features and leaves of largest I until they carry the share `nodes` of what reaches
   any of them; tokens and targets always stay. `rest` leaves hold no one thing and are not candidates.
2. Edges: scored by Ahat[t, s] (I[t] + w[t]) on what is left, kept until they carry the share `edges`.
3. Features that have lost all edges out, or all edges in, go too, until nothing changes.

What goes is not dropped: each weight is added to an edge from one of two `rest` leaves into the same target, one for what
raised it and one for what lowered it. So every row still sums to its value, and keeps its absolute sum too: shares of
what stays do not change, and strict scores of a pruned graph can only fall (one rest leaf would let opposite signs cancel).
Supernodes in the metadata keep the members that are left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...saes.errors import UserError
from ..graph import FACTORS, FEATURES, TARGETS, Edges, Graph, Node
from .scores import blocks, influence, into, normalised, target_weights


def prune(graph: Graph, nodes: float = 0.8, edges: float = 0.98, *, compatible: bool = False) -> Graph:
    """The graph's part that carries the share `nodes` of influence on nodes, and `edges` of that on edges.

    The share of nodes is of what reaches features and the leaves that can go; `compatible` counts it over all nodes, tokens
    too, as circuit-tracer does, which keeps fewer.
    """
    for name, share in (("nodes", nodes), ("edges", edges)):
        if not 0 <= share <= 1:
            raise UserError(f"expected {name} as a share from 0 to 1; got {share}; give for example 0.8")
    weights = target_weights(graph)
    arriving = influence(graph.edges, normalised(graph.edges, len(graph)), weights)
    kept = _kept_nodes(graph, arriving, nodes, compatible)
    alive = _kept_edges(graph, kept, weights, edges)
    kept, alive = _settle(graph, kept, alive)
    small = fold(graph, kept, alive)
    small.metadata["pruned"] = {"nodes": nodes, "edges": edges}
    return small


def _largest(size: Float[Tensor, "item"], share: float) -> Bool[Tensor, "item"]:
    """The fewest items of largest size that carry `share` of the sum; all that are not 0 for a share of 1.

    Only the items near the limit are sorted: sizes are first counted by the leading 16 bits of their representation,
    which order non-negative numbers as their values do.
    """
    if share == 1:
        return size > 0
    bits = size.view(torch.int32) >> 16 if size.dtype == torch.float32 else (size.view(torch.int64) >> 48).int()
    mass = torch.bincount(bits, size, minlength=1 << 15).double()
    carried = mass.cumsum(0)
    above, wanted = carried[-1] - carried, share * float(carried[-1])
    edge = int((above < wanted).nonzero()[0]) if wanted > 0 else 1 << 15
    keep = bits > edge
    border = (bits == edge).nonzero()[:, 0]
    ordered = size[border].double().sort(descending=True, stable=True)
    before = ordered.values.cumsum(0) - ordered.values + (above[edge] if len(border) else 0)
    keep[border[ordered.indices[(before < wanted) & (ordered.values > 0)]]] = True
    return keep


def _kept_nodes(graph: Graph, arriving: Float[Tensor, "node"], share: float, compatible: bool) -> Bool[Tensor, "node"]:
    always, folded = graph.is_kind("token", *TARGETS), graph.is_kind("rest")
    counted = torch.ones_like(always) if compatible else ~always & ~folded
    return always | (_largest(arriving * counted, share) & ~folded)


def _kept_edges(
    graph: Graph, kept: Bool[Tensor, "node"], weights: Float[Tensor, "node"], share: float
) -> Bool[Tensor, "edge"]:
    inside = kept[graph.edges.target] & kept[graph.edges.source]
    part = Edges(*(column[inside] for column in graph.edges))
    shares = normalised(part, len(graph))
    through = influence(part, shares, weights) + weights
    for block in blocks(len(shares)):
        shares[block] = (shares[block] * through[part.target[block]]).to(shares)
    alive = torch.zeros_like(inside)
    alive[inside] = _largest(shares, share)
    return alive


def _settle(
    graph: Graph, kept: Bool[Tensor, "node"], alive: Bool[Tensor, "edge"]
) -> tuple[Bool[Tensor, "node"], Bool[Tensor, "edge"]]:
    """Drop features without edges out or in, and other leaves but tokens without edges out, until none is left."""
    feature, fixed = graph.is_kind(*FEATURES, *FACTORS), graph.is_kind("token", *TARGETS)
    while True:
        has_out, has_in = torch.zeros_like(kept), torch.zeros_like(kept)
        has_out[graph.edges.source[alive]] = True
        has_in[graph.edges.target[alive]] = True
        stays = kept & (fixed | (has_out & (has_in | ~feature)))
        if torch.equal(stays, kept):
            return kept, alive
        kept = stays
        alive = alive & kept[graph.edges.target] & kept[graph.edges.source]


def fold(graph: Graph, kept: Bool[Tensor, "node"], alive: Bool[Tensor, "edge"]) -> Graph:
    """The graph on the `kept` nodes and `alive` edges; all other weights into kept rows become edges from the two rest leaves."""
    # The rest leaves go first: an index below every target's keeps the causal order.
    old, dtype = graph.edges, graph.edges.target.dtype
    number = torch.full((len(graph),), -1, dtype=dtype)
    number[kept] = torch.arange(2, int(kept.sum()) + 2, dtype=dtype)
    pieces = [Edges(number[old.target[alive]], number[old.source[alive]], old.weight[alive])]
    lost = old.weight.masked_fill(alive, 0)
    for leaf, signed in enumerate((lost.clamp(min=0), lost.clamp(max=0))):
        total = into(old.target, signed, len(graph)) * kept
        rows = total.nonzero()[:, 0]
        pieces.append(Edges(number[rows], torch.full_like(number[rows], leaf), total[rows].to(old.weight)))
    target, source, weight = (torch.cat(columns) for columns in zip(*pieces, strict=True))
    order = torch.argsort(target.long() * (len(graph) + 2) + source)
    rest = [Node("rest", -1, -1, -1, 0.0, f"everything else that {does} it") for does in ("raises", "lowers")]
    nodes = rest + [node for node, keep in zip(graph.nodes, kept.tolist(), strict=True) if keep]
    values = torch.cat([graph.row_values.new_full((2,), float("nan")), graph.row_values[kept]])
    metadata = graph.metadata | renumbered(graph.metadata, number.tolist())
    return Graph(nodes, Edges(target[order], source[order], weight[order]), values, metadata)


def renumbered(metadata: dict[str, Any], number: Sequence[int]) -> dict[str, Any]:
    """The entry "supernodes" of `metadata` with each node index replaced by `number[index]`; -1 drops the node.

    A node that arrives twice is named once; a supernode that loses all its nodes goes. {} where there is no entry.
    """
    if "supernodes" not in metadata:
        return {}
    groups = [(label, [number[i] for i in nodes if number[i] >= 0]) for label, *nodes in metadata["supernodes"]]
    return {"supernodes": [[label, *dict.fromkeys(nodes)] for label, nodes in groups if nodes]}
