"""How much of the output a graph explains: influence, replacement and completeness.

With A the edge weights, normalise each row by its absolute sum, Ahat[t, s] = |A[t, s]| / sum_s |A[t, s]|, and let w be the
targets' weights. The influence of a node is what reaches it over all paths (Ameisen et al. 2025),

    I = w (Ahat + Ahat^2 + ...) = w ((1 - Ahat)^-1 - 1),

a series that ends, because edges only go upwards; one pass over the rows in reverse causal order sums it exactly. If every
row is non-empty the influence that arrives at leaves equals the sum of w, so leaf shares are a partition.

Two definitions of each score:

* strict. Every leaf counts. replacement = the tokens' share of all influence on leaves; completeness = the share of input edges
  that come from features and tokens, over nodes that have inputs, weighted by I + w.
* compatible, for comparison with numbers published with circuit-tracer, which has no bias, position, first-position or rest
  leaves: those columns are dropped before normalising; replacement = tokens / (tokens + errors); completeness also
  averages over leaves, whose empty rows count as fully explained. It flatters, and more the less a graph holds.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .graph import FEATURES, Edges, Graph

LEAVES = ("token", "position", "bias", "first", "error", "rest")


class Scores(NamedTuple):
    """Shares between 0 and 1, and the strict share of influence that each kind of leaf receives (sums to 1)."""

    replacement: float
    completeness: float
    replacement_compatible: float
    completeness_compatible: float
    leaf_shares: dict[str, float]


def normalised(edges: Edges, nodes: int) -> Float[Tensor, "edge"]:
    """|weight| of each edge as a share of its target's absolute row sum."""
    size = edges.weight.abs().double()
    mass = torch.zeros(nodes, dtype=torch.float64).index_add_(0, edges.target, size)
    return size / mass[edges.target].clamp_min(1e-300)


def influence(edges: Edges, shares: Float[Tensor, "edge"], weights: Float[Tensor, "node"]) -> Float[Tensor, "node"]:
    """w ((1 - Ahat)^-1 - 1), the influence of every node; `shares` are the entries of Ahat. Edges must be ordered by target."""
    arriving = torch.zeros_like(weights)
    targets, counts = edges.target.unique_consecutive(return_counts=True)
    ends = counts.cumsum(0)
    for target, start, end in zip(*(column.flip(0).tolist() for column in (targets, ends - counts, ends)), strict=True):
        passing = float(arriving[target] + weights[target])
        if passing:
            # Sources of one row are distinct, so plain indexing adds each once.
            arriving[edges.source[start:end]] += passing * shares[start:end]
    return arriving


def target_weights(graph: Graph) -> Float[Tensor, "node"]:
    """The weights of the logit nodes, 0 elsewhere."""
    return graph.column("weight")


def scores(graph: Graph) -> Scores:
    """Replacement and completeness in both definitions."""
    weights = target_weights(graph)
    kind = {name: graph.is_kind(name) for name in (*LEAVES, "logit")}
    shares = normalised(graph.edges, len(graph))
    arriving = influence(graph.edges, shares, weights)
    on_leaves = {name: float(arriving[kind[name]].sum()) for name in LEAVES}
    total = sum(on_leaves.values()) or 1.0
    through = arriving + weights
    explained = graph.is_kind("token", *FEATURES)
    has_row = ~graph.row_values.isnan()
    completeness = float(_explained(graph.edges, shares, explained) @ through) / (float(through[has_row].sum()) or 1.0)
    compatible = _compatible(graph, weights)
    return Scores(
        on_leaves["token"] / total,
        completeness,
        *compatible,
        {name: value / total for name, value in on_leaves.items() if value},
    )


def _explained(edges: Edges, shares: Float[Tensor, "edge"], sources: Bool[Tensor, "node"]) -> Float[Tensor, "node"]:
    """For each target, the share of its row that comes from `sources`."""
    return torch.zeros(len(sources), dtype=torch.float64).index_add_(0, edges.target, shares * sources[edges.source])


def _compatible(graph: Graph, weights: Float[Tensor, "node"]) -> tuple[float, float]:
    known = graph.is_kind("token", "error", "logit", *FEATURES)
    keep = known[graph.edges.source]
    edges = Edges(*(column[keep] for column in graph.edges))
    shares = normalised(edges, len(graph))
    arriving = influence(edges, shares, weights)
    tokens, error = graph.is_kind("token"), graph.is_kind("error")
    reached = float(arriving[tokens].sum()), float(arriving[error].sum())
    through = (arriving + weights)[known]
    unexplained = _explained(edges, shares, error)[known]
    return reached[0] / (sum(reached) or 1.0), float((1 - unexplained) @ through) / (float(through.sum()) or 1.0)
