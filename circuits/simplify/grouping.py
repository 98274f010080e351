"""Find supernodes: which features do the same job, and how much of the graph a grouping leaves.

`supernodes` joins the two most similar groups again and again (agglomerative, average linkage), with

    similarity(i, j) = ½ cos(in_i, in_j) + ½ cos(out_i, out_j)

where in_i is the signed row of i over its absolute sum, and out_i its column of the matrix of such rows: two features are alike
when the same sources move them and they move the same targets. Only features of one kind at one position are joined (the same
latent at two positions reads different tokens: that is two events), at most `layers` layers apart, and never so that a
cycle appears. Members that feed each other are a little less alike for it.

`quality`: let p(t, s, ±) be the share of all influence that flows along the edge s → t, F = (I[t] + w[t]) Ahat[t, s]
(scores.py), of which sign. Its multi-information

    M = sum p(t, s, ±) log [ p(t, s, ±) / (p(t) p(s) p(±)) ]            quality = M(grouped) / M(graph), from 0 to 1

says how much targets, sources and signs tell of each other. What grouping loses of it is the divergence between p and what
one reads back from the grouped graph when the members of a group differ in their totals alone: the criterion of
information-theoretic co-clustering (Dhillon et al. 2003). So quality is 1 if and only if members are copies of each other up
to their totals, joining can only lower it, and random groups of the same sizes are what to compare it with.

When no number of groups is given, joining stops at the knee of quality: with q_k after k of K joins, the k of largest
(q_k - q_K) / (1 - q_K) + k / K.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...saes.errors import UserError
from ..graph import Edges, Graph
from .scores import blocks, influence, normalised, rows_of, target_weights
from .supernodes import Supernode, check, membership_of, supernodes_of

MOST = 2000  # features that are compared pair by pair
TRIED = 200  # numbers of groups whose quality is computed


def supernodes(graph: Graph, n: int | None = None, *, layers: int | None = None) -> list[Supernode]:
    """Groups of two or more features that do the same job; `n`: how many nodes the features become, singles included.

    `layers`: the furthest that members may stand apart (None: any distance). Fewer joins than `n` asks for are made when no
    allowed pair is left. UserError above 2,000 features: prune first.
    """
    members = graph.of_kind("neuron", "latent")
    if len(members) > MOST:
        raise UserError(f"expected at most {MOST:,} features to group; got {len(members):,}; prune the graph first")
    if n is not None and n < 1:
        raise UserError(f"expected n of at least 1; got {n}; leave it out to have it chosen")
    merges = _agglomerate(graph, members, 1 if n is None else n, layers)
    count = len(merges) if n is not None else _knee(graph, merges)
    groups: dict[int, list[int]] = {}
    for node, group in enumerate(_joined(graph, merges[:count]).tolist()):
        groups.setdefault(group, []).append(node)
    return [_named(graph, nodes) for nodes in groups.values() if len(nodes) > 1]


def quality(graph: Graph, groups: Sequence[Supernode] | None = None) -> float:
    """What this grouping (default: the graph's own) leaves of what the graph tells, from 0 to 1; see the module header."""
    groups = supernodes_of(graph) if groups is None else groups
    check(graph, groups)
    return _Flow(graph).quality(membership_of(graph, groups))


def _joined(graph: Graph, merges: list[tuple[int, int]]) -> Int[Tensor, "node"]:
    """For every node the lowest member of its group after these joins."""
    head = torch.arange(len(graph))
    for a, b in merges:
        head[head == b] = a
    return head


def _knee(graph: Graph, merges: list[tuple[int, int]]) -> int:
    """How many joins are made before quality falls steeply."""
    flow, head = _Flow(graph), torch.arange(len(graph))
    step = max(1, len(merges) // TRIED)
    tried, found = [0], [1.0]
    for k, (a, b) in enumerate(merges, 1):
        head[head == b] = a
        if k % step == 0 or k == len(merges):
            tried.append(k)
            found.append(flow.quality(head))
    span = max(1 - found[-1], 1e-9)
    gains = [(q - found[-1]) / span + k / max(1, len(merges)) for k, q in zip(tried, found, strict=True)]
    return max(zip(gains, tried, strict=True))[1]


class _Flow:
    """The distribution of influence over signed edges, and its multi-information after grouping."""

    def __init__(self, graph: Graph):
        shares, weights = normalised(graph.edges, len(graph)), target_weights(graph)
        through = influence(graph.edges, shares, weights) + weights
        self.target, self.source = graph.edges.target.long(), graph.edges.source.long()
        self.flow = torch.empty(len(shares), dtype=torch.float64)
        for part in blocks(len(shares)):
            self.flow[part] = shares[part].double() * through[self.target[part]]
        self.flow /= self.flow.sum().clamp_min(1e-300)
        self.sign = (graph.edges.weight > 0).long()
        self.whole = self._information(torch.arange(len(graph)))

    def quality(self, membership: Int[Tensor, "node"]) -> float:
        """M(grouped) / M(graph); 1 when there is nothing to tell."""
        return min(1.0, self._information(membership) / self.whole) if self.whole > 1e-12 else 1.0

    def _information(self, membership: Int[Tensor, "node"]) -> float:
        target, source, count = membership[self.target], membership[self.source], len(membership)
        _, cell = ((target * count + source) * 2 + self.sign).unique(return_inverse=True)
        marginals = sum(_entropy(label, self.flow) for label in (target, source, self.sign))
        return marginals - _entropy(cell, self.flow)


def _entropy(label: Int[Tensor, "edge"], mass: Float[Tensor, "edge"]) -> float:
    return -float(torch.special.xlogy(total := torch.bincount(label, mass), total).sum())


def _agglomerate(graph: Graph, members: Int[Tensor, "member"], n: int, layers: int | None) -> list[tuple[int, int]]:
    """Average linkage: pairs of groups (lowest node of each) in the order in which they are joined, until n are left."""
    similarity, may = _similarity(graph, members), _may_join(graph, members, layers)
    reach, at = _reach(graph), members.tolist()
    size = torch.ones(len(at), dtype=torch.float64)
    low, high = graph.column("layer")[members], graph.column("layer")[members]
    merges: list[tuple[int, int]] = []
    allowed = may.clone()
    for i, node in enumerate(at):
        allowed[i] &= ~_with_way_round(reach, node)[members]
    while len(at) - len(merges) > n and allowed.any():
        best = int(similarity.masked_fill(~allowed, -torch.inf).argmax())
        a, b = sorted(divmod(best, len(at)))
        if _with_way_round(reach, at[a])[at[b]]:
            allowed[a, b] = allowed[b, a] = False
            continue
        merges.append((at[a], at[b]))
        row = (size[a] * similarity[a] + size[b] * similarity[b]) / (size[a] + size[b])
        similarity[a], similarity[:, a] = row, row
        size[a] += size[b]
        low[a], high[a] = torch.minimum(low[a], low[b]), torch.maximum(high[a], high[b])
        may[a] &= may[b]
        if layers is not None:
            may[a] &= torch.maximum(high, high[a]) - torch.minimum(low, low[a]) <= layers
        may[:, a] = may[a]
        for mask in (may, allowed):
            mask[b], mask[:, b] = False, False
        _join_reach(reach, at[a], at[b])
        # A way round other pairs stays; what lay between this group and another may lie inside it now.
        allowed[a] = may[a] & ~_with_way_round(reach, at[a])[members]
        allowed[:, a] = allowed[a]
    return merges


def _similarity(graph: Graph, members: Int[Tensor, "member"]) -> Float[Tensor, "member member"]:
    shares = normalised(graph.edges, len(graph)).double() * graph.edges.weight.sign()
    place = torch.full((len(graph),), -1)
    place[members] = torch.arange(len(members))
    total = torch.zeros(len(members), len(members), dtype=torch.float64)
    for mine, other in ((graph.edges.target, graph.edges.source), (graph.edges.source, graph.edges.target)):
        kept = place[mine] >= 0
        profile = torch.zeros(len(members), len(graph), dtype=torch.float64)
        profile[place[mine[kept]], other[kept].long()] = shares[kept]
        profile /= profile.norm(dim=1, keepdim=True).clamp_min(1e-300)
        total += profile @ profile.T / 2
    return total


def _may_join(graph: Graph, members: Int[Tensor, "member"], layers: int | None) -> Bool[Tensor, "member member"]:
    """Same kind, same position, layers near enough; not itself."""
    place, layer = graph.column("position")[members], graph.column("layer")[members]
    latent = graph.is_kind("latent")[members]
    may = (place[:, None] == place) & (latent[:, None] == latent)
    if layers is not None:
        may &= (layer[:, None] - layer).abs() <= layers
    return may.fill_diagonal_(False)


def _reach(graph: Graph) -> Bool[Tensor, "node node"]:
    """reach[i, j]: a way leads from i to j. Only rows can lie between two features, so leaves are left out."""
    reach = torch.zeros(len(graph), len(graph), dtype=torch.bool)
    has_row = ~graph.row_values.isnan()
    inner = has_row[graph.edges.source]
    edges = Edges(*(column[inner] for column in graph.edges))
    for node, start, end in rows_of(edges):
        direct = edges.source[start:end].long()
        reach[:, node] = reach[:, direct].any(1)
        reach[direct, node] = True
    return reach


def _with_way_round(reach: Bool[Tensor, "node node"], a: int) -> Bool[Tensor, "node"]:
    """The nodes between which and a lies something else."""
    return reach[reach[a]].any(0) | reach[:, reach[:, a]].any(1)


def _join_reach(reach: Bool[Tensor, "node node"], a: int, b: int) -> None:
    """Let a stand for both."""
    after, before = reach[a] | reach[b], reach[:, a] | reach[:, b]
    after[[a, b]], before[[a, b]] = False, False
    reach[b], reach[:, b] = False, False
    reach[before] |= after
    reach[a], reach[:, a] = after, before
    reach[before, a] = True


def _named(graph: Graph, nodes: list[int]) -> Supernode:
    """Named after the member of largest |attribution|."""
    first = max(nodes, key=lambda i: abs(graph.nodes[i].attribution))
    return Supernode(f"{graph.nodes[first].label} and {len(nodes) - 1} more", tuple(nodes))
