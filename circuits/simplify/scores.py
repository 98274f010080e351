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

A user's subgraph is scored by treating every other feature as error: its outgoing weights go to the error of its layer and
position, and its row is emptied. The compatible scores add them with their signs, so that opposite effects of dropped
features cancel before |.| is taken; the strict ones keep their sizes, so that dropping a feature never makes a graph look better.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...saes.errors import UserError
from ..graph import FACTORS, FEATURES, TARGETS, Edges, Graph

LEAVES = ("token", "position", "bias", "first", "error", "rest")
BLOCK = 1 << 22  # edges of which temporaries are held at once


class Scores(NamedTuple):
    """Shares between 0 and 1, and the strict share of influence that each kind of leaf receives (sums to 1)."""

    replacement: float
    completeness: float
    replacement_compatible: float
    completeness_compatible: float
    leaf_shares: dict[str, float]


def blocks(count: int) -> Iterator[slice]:
    """Slices that cover `count` edges, so that a temporary of doubles is small beside the edges themselves."""
    return (slice(start, start + BLOCK) for start in range(0, count, BLOCK))


def into(
    target: Int[Tensor, "edge"], amount: Float[Tensor, "edge"] | Bool[Tensor, "edge"], nodes: int
) -> Float[Tensor, "node"]:
    """Sum of `amount` over the edges into each node, in double precision."""
    total = torch.zeros(nodes, dtype=torch.float64)
    for part in blocks(len(target)):
        total.index_add_(0, target[part], amount[part].double())
    return total


def normalised(edges: Edges, nodes: int) -> Float[Tensor, "edge"]:
    """|weight| of each edge as a share of its target's absolute row sum, in the dtype of the weights."""
    shares = edges.weight.abs()
    mass = into(edges.target, shares, nodes).clamp_min(1e-300)
    for part in blocks(len(shares)):
        shares[part] = (shares[part].double() / mass[edges.target[part]]).to(shares)
    return shares


def rows_of(edges: Edges) -> Iterator[tuple[int, int, int]]:
    """(target, start, end) of each row, in causal order."""
    targets, counts = edges.target.unique_consecutive(return_counts=True)
    ends = counts.cumsum(0)
    return zip(targets.tolist(), (ends - counts).tolist(), ends.tolist(), strict=True)


def influence(edges: Edges, shares: Float[Tensor, "edge"], weights: Float[Tensor, "node"]) -> Float[Tensor, "node"]:
    """w ((1 - Ahat)^-1 - 1), the influence of every node; `shares` are the entries of Ahat. Edges must be ordered by target."""
    arriving = torch.zeros_like(weights)
    for target, start, end in reversed(list(rows_of(edges))):
        passing = float(arriving[target] + weights[target])
        if passing:
            arriving.index_add_(0, edges.source[start:end], shares[start:end].to(weights), alpha=passing)
    return arriving


def target_weights(graph: Graph) -> Float[Tensor, "node"]:
    """The weights of the logit nodes, 0 elsewhere."""
    return graph.column("weight")


def scores(graph: Graph, pinned: Sequence[int] | None = None) -> Scores:
    """Replacement and completeness in both definitions; with `pinned`, those of the subgraph on these features.

    `pinned`: indices of the features that stay; tokens, targets and leaves always do. UserError for what is no feature.
    """
    weights = target_weights(graph)
    edges, is_error = graph.edges, graph.is_kind("error")
    if pinned is not None:
        edges, is_error = _pinned(graph, pinned)
        weights = torch.nn.functional.pad(weights, (0, len(is_error) - len(weights)))
    kind = {name: _wide(graph.is_kind(name), len(weights)) for name in LEAVES} | {"error": is_error}
    shares = normalised(edges, len(weights))
    arriving = influence(edges, shares, weights)
    on_leaves = {name: float(arriving[kind[name]].sum()) for name in LEAVES}
    total = sum(on_leaves.values()) or 1.0
    through = arriving + weights
    explained = _wide(graph.is_kind("token", *FEATURES, *FACTORS), len(weights))
    has_row = torch.zeros(len(weights), dtype=torch.bool)
    has_row[edges.target] = True
    completeness = float(_explained(edges, shares, explained) @ through) / (float(through[has_row].sum()) or 1.0)
    known = _wide(graph.is_kind("token", *TARGETS, *FEATURES, *FACTORS), len(weights)) | is_error
    if pinned is not None:
        edges = coalesce(*edges, len(weights))
    return Scores(
        on_leaves["token"] / total,
        completeness,
        *_compatible(edges, weights, known, kind["token"], is_error),
        {name: value / total for name, value in on_leaves.items() if value},
    )


def coalesce(
    target: Int[Tensor, "entry"], source: Int[Tensor, "entry"], weight: Float[Tensor, "entry"], nodes: int
) -> Edges:
    """Edges ordered by target and source; entries of the same pair are added in double precision."""
    pair, place = (target.long() * nodes + source).unique(return_inverse=True)
    total = torch.zeros(len(pair), dtype=torch.float64).index_add_(0, place, weight.double())
    return Edges((pair // nodes).to(target), (pair % nodes).to(source), total.to(weight))


def _wide(mask: Bool[Tensor, "node"], count: int) -> Bool[Tensor, "all"]:
    """`mask`, with False for nodes that the graph lacks."""
    return torch.nn.functional.pad(mask, (0, count - len(mask)))


def _pinned(graph: Graph, pinned: Sequence[int]) -> tuple[Edges, Bool[Tensor, "all"]]:
    """The edges with unpinned features as errors, and which nodes are errors; layers without errors get one at the end."""
    wrong = [i for i in pinned if not (0 <= i < len(graph) and graph.nodes[i].is_feature)]
    if wrong:
        raise UserError(
            f"expected indices of features in `pinned`; got {wrong[0]}; see graph.of_kind('latent', 'neuron')"
        )
    place = {(node.layer, node.position): i for i, node in enumerate(graph.nodes) if node.kind == "error"}
    becomes = torch.arange(len(graph))
    gone = graph.is_kind(*FEATURES)
    gone[list(pinned)] = False
    for i in gone.nonzero()[:, 0].tolist():
        at = (graph.nodes[i].layer, graph.nodes[i].position)
        becomes[i] = place.setdefault(at, len(graph) + len(place))
    keep = ~gone[graph.edges.target]
    target, source, weight = (column[keep] for column in graph.edges)
    is_error = _wide(graph.is_kind("error"), max([len(graph) - 1, *place.values()]) + 1)
    is_error[list(place.values())] = True
    return Edges(target, becomes.to(source)[source], weight), is_error


def _explained(edges: Edges, shares: Float[Tensor, "edge"], sources: Bool[Tensor, "node"]) -> Float[Tensor, "node"]:
    """For each target, the share of its row that comes from `sources`."""
    return into(edges.target, shares * sources[edges.source], len(sources))


def _compatible(
    edges: Edges,
    weights: Float[Tensor, "node"],
    known: Bool[Tensor, "node"],
    token: Bool[Tensor, "node"],
    error: Bool[Tensor, "node"],
) -> tuple[float, float]:
    keep = known[edges.source]
    edges = Edges(*(column[keep] for column in edges))
    shares = normalised(edges, len(weights))
    arriving = influence(edges, shares, weights)
    reached = float(arriving[token].sum()), float(arriving[error].sum())
    through = (arriving + weights)[known]
    unexplained = _explained(edges, shares, error)[known]
    return reached[0] / (sum(reached) or 1.0), float((1 - unexplained) @ through) / (float(through.sum()) or 1.0)
