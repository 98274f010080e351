"""Supernodes: groups of nodes that are read as one.

`group` names them in the graph's metadata, `collapse` makes one node of each. Weights between supernodes are plain sums,
A[T, S] = sum of A[t, s] over t in T and s in S, and a row's value is the sum of its members' values; so the ledger stays
closed. Weights *within* a supernode (one member feeding another) are no edges any more: they leave the row and are taken off
its value, which is then what its members receive from outside.

A graph of supernodes must still have a causal order: members with something else between them (member → other → member)
are refused. Joining two copies of a feature gives back the graph before it was copied, exactly. Features of opposite effect
cancel in a sum, so influence, which goes by |A|, is otherwise not kept by joining: `grouping.quality` says how much is lost.

`supernode_weights` has the arithmetic of the published graph viewers instead, a weighted mean of normalised rows, no ledger.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...saes.errors import UserError
from ..graph import Edges, Graph, Node
from .prune import renumbered
from .scores import coalesce, into


class Supernode(NamedTuple):
    """A name and the indices of the nodes that it stands for."""

    label: str
    nodes: tuple[int, ...]


def group(graph: Graph, groups: Mapping[str, Sequence[int]] | Sequence[Supernode]) -> Graph:
    """The same graph with these supernodes in its metadata, in place of any it had.

    UserError for an unknown index, a node in two groups, or members of different kinds.
    """
    pairs = groups.items() if isinstance(groups, Mapping) else groups
    named = [Supernode(label, tuple(int(i) for i in nodes)) for label, nodes in pairs]
    check(graph, named)
    entry = [[one.label, *one.nodes] for one in named]
    return Graph(list(graph.nodes), graph.edges, graph.row_values, graph.metadata | {"supernodes": entry})


def collapse(graph: Graph) -> Graph:
    """One node per supernode of the metadata, with the summed weights and row values of the module header.

    A supernode has its members' kind, their layer, position and site where all agree (the last layer otherwise, no position, no site),
    the sum of their values, and index -1. UserError, naming the way round, when the result would have a cycle.
    """
    groups = supernodes_of(graph)
    check(graph, groups)
    membership = membership_of(graph, groups)
    edges, internal = _between(graph, membership, graph.edges.weight)
    order = causal_order(edges, len(graph), _labels(graph, groups), membership.unique().tolist())
    values = torch.zeros(len(graph), dtype=torch.float64)
    values.index_add_(0, membership, graph.row_values.double()).sub_(internal)
    by_head = {min(one.nodes): _joined(graph, one) for one in groups}
    nodes = [by_head.get(head, graph.nodes[head]) for head in order]
    number = _numbers(order, len(graph))
    metadata = graph.metadata | renumbered(graph.metadata, number[membership].tolist())
    return Graph(nodes, _renumbered(edges, order, len(graph)), values[order].to(graph.row_values), metadata)


def supernode_weights(graph: Graph) -> Edges:
    """Edges between supernodes as the published viewers compute them; indices are those of `collapse(graph)`.

    weight(S → T) = sum_t m_t sum_s A[t, s] / ext_t, with ext_t the absolute sum of what t gets from outside T, and m_t the
    share ext_t / total_t of t's whole absolute sum, normalised over T: members that are fed by their own group count less.
    """
    groups = supernodes_of(graph)
    check(graph, groups)
    membership = membership_of(graph, groups)
    outside = membership[graph.edges.target] != membership[graph.edges.source]
    size = graph.edges.weight.abs()
    total, external = into(graph.edges.target, size, len(graph)), into(graph.edges.target, size * outside, len(graph))
    share = external / total.clamp_min(1e-300)
    mixed = share / torch.zeros_like(share).index_add_(0, membership, share)[membership].clamp_min(1e-300)
    factor = mixed / external.clamp_min(1e-300)
    edges, _ = _between(graph, membership, graph.edges.weight * factor[graph.edges.target].to(graph.edges.weight))
    order = causal_order(edges, len(graph), _labels(graph, groups), membership.unique().tolist())
    return _renumbered(edges, order, len(graph))


def causal_order(edges: Edges, count: int, labels: Sequence[str], nodes: Sequence[int]) -> list[int]:
    """`nodes` so that every edge goes forwards, lower indices first where that is free; UserError naming a cycle."""
    by_source = edges.source.argsort(stable=True)
    targets = edges.target[by_source]
    ends = torch.bincount(edges.source, minlength=count).cumsum(0).tolist()
    waiting = torch.bincount(edges.target, minlength=count)
    ready = [i for i in nodes if not waiting[i]]
    heapq.heapify(ready)
    order = []
    while ready:
        node = heapq.heappop(ready)
        order.append(node)
        fed = targets[ends[node - 1] if node else 0 : ends[node]].long()
        waiting[fed] -= 1
        for one in fed[waiting[fed] == 0].tolist():
            heapq.heappush(ready, one)
    if len(order) < len(nodes):
        way = " → ".join(labels[i] for i in _cycle(edges, set(nodes) - set(order)))
        raise UserError(f"expected supernodes that keep a causal order; got the cycle {way}; take one of these apart")
    return order


def _cycle(edges: Edges, left: set[int]) -> list[int]:
    """A way round among nodes of which each has a source among them."""
    walked = [min(left)]
    while True:
        sources = edges.source[edges.target == walked[0]].tolist()
        before = next(source for source in sources if source in left)
        if before in walked:
            return [before, *walked[: walked.index(before) + 1]]
        walked.insert(0, before)


def supernodes_of(graph: Graph) -> list[Supernode]:
    """The supernodes of the graph's metadata."""
    return [Supernode(label, tuple(nodes)) for label, *nodes in graph.metadata.get("supernodes", [])]


def check(graph: Graph, groups: Sequence[Supernode]) -> None:
    """UserError for an unknown index, a node in two groups, or members of different kinds."""
    seen: set[int] = set()
    for label, nodes in groups:
        wrong = [i for i in nodes if not 0 <= i < len(graph)]
        if wrong or not nodes:
            raise UserError(
                f"expected indices from 0 to {len(graph) - 1} in supernode {label!r}; got {wrong[:1] or 'none'}; see graph.nodes"
            )
        twice = seen.intersection(nodes) or {i for i in nodes if nodes.count(i) > 1}
        if twice:
            name = graph.nodes[min(twice)].label
            raise UserError(f"expected each node in one supernode; got {name!r} a second time in {label!r}; remove it")
        kinds = sorted({graph.nodes[i].kind for i in nodes})
        if len(kinds) > 1:
            raise UserError(f"expected members of one kind in supernode {label!r}; got {', '.join(kinds)}; split it")
        seen.update(nodes)


def membership_of(graph: Graph, groups: Sequence[Supernode]) -> Int[Tensor, "node"]:
    """For every node the lowest member of its supernode: itself where it is in none."""
    head = torch.arange(len(graph))
    for _, nodes in groups:
        head[list(nodes)] = min(nodes)
    return head


def _labels(graph: Graph, groups: Sequence[Supernode]) -> list[str]:
    labels = [node.label for node in graph.nodes]
    for label, nodes in groups:
        labels[min(nodes)] = label
    return labels


def _numbers(order: list[int], count: int) -> Int[Tensor, "node"]:
    """For each of `count` nodes its place in `order`, -1 outside it."""
    number = torch.full((count,), -1)
    number[order] = torch.arange(len(order))
    return number


def _renumbered(edges: Edges, order: list[int], count: int) -> Edges:
    number = _numbers(order, count).to(edges.target)
    return coalesce(number[edges.target], number[edges.source], edges.weight, len(order))


def _between(
    graph: Graph, membership: Int[Tensor, "node"], weight: Float[Tensor, "edge"]
) -> tuple[Edges, Float[Tensor, "node"]]:
    """Summed `weight`s between supernodes, each at its lowest member; and what stays within each of them."""
    target, source = membership[graph.edges.target], membership[graph.edges.source]
    inside = target == source
    dtype = graph.edges.target.dtype
    outer = coalesce(target[~inside].to(dtype), source[~inside].to(dtype), weight[~inside], len(graph))
    return outer, into(target[inside], weight[inside], len(graph))


def _joined(graph: Graph, one: Supernode) -> Node:
    members = [graph.nodes[i] for i in one.nodes]
    layers, places, sites = ({getattr(m, name) for m in members} for name in ("layer", "position", "site"))
    return Node(
        members[0].kind,
        max(layers),
        places.pop() if len(places) == 1 else -1,
        members[0].index if len(members) == 1 else -1,
        sum(m.value for m in members),
        one.label,
        sum(m.attribution for m in members),
        sum(m.weight for m in members),
        sites.pop() if len(sites) == 1 else "",
    )
