"""The strongest paths from a prompt's tokens to a target, other routes that do the same job, and what ablation should do.

A path's strength is the product of its edges' shares Ahat[t, s] = |A[t, s]| / sum_s |A[t, s]|: how much of the target
passes along it when every row is split in proportion. Nodes stand in causal order, so the n best paths into each node follow from
the n best into its sources (k-best dynamic programming, exact): strength[t, i] = i-th largest of Ahat[t, s] strength[s, j]
over sources s and ranks j, with strength 1 at tokens.

`ablated` predicts every row's value when features are taken away, from the graph alone. Rows are taken in causal order;
each source s stands at c[s] times what it was, and a feature's activation follows its row in proportion:

    row'[t] = sum_s A[t, s] c[s]        c[s] = 0 if ablated,  row'[s] / row[s] for other features,  1 for leaves

That is exact within the frozen model (patterns, norm scales, and which latents are active, held) for transcoder latents, whose
activation is their pre-activation, while none is pushed below its threshold; a plain neuron keeps its ratio act(pre)/pre, and a
gated neuron moves by half the change of each factor, as its row does (the half rule). What stands in `rest`, `error` or `first`
leaves does not respond. With one feature ablated, the weighted targets fall by that feature's total attribution through
features of the graph.

`alternatives` takes the strongest path with at least one feature, bans its features, and repeats: routes that share no
feature. It is greedy: a path that would block two good others is still taken first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...saes.errors import UserError
from ..graph import TARGETS, Graph
from .scores import normalised, rows_of


class Path(NamedTuple):
    """Node indices from a token to the target, the signed weight of each edge, and the product of their shares."""

    nodes: tuple[int, ...]
    weights: tuple[float, ...]
    strength: float
    text: str

    def __str__(self) -> str:
        return f"{self.strength:.4f}  {self.text}"


class Alternative(NamedTuple):
    """One of several feature-disjoint routes to a target.

    `share`: of the target's influence, what arrives through any of this route's features. `alone` and `remaining`: the
    target's predicted value, as a share of what it was, when the features of this route are ablated, and when those of this
    and of all earlier routes are.
    """

    path: Path
    features: tuple[int, ...]
    share: float
    alone: float
    remaining: float

    def __str__(self) -> str:
        return f"share {self.share:.3f}, without it {self.alone:+.3f}, without all so far {self.remaining:+.3f}: {self.path.text}"


def paths(graph: Graph, n: int = 5, target: int | None = None) -> list[Path]:
    """The n strongest paths into node `target` (default: the logit of largest weight), strongest first."""
    if n < 1:
        raise UserError(f"expected n of at least 1; got {n}; ask for 5 paths")
    target = _target(graph, target)
    return _strongest(graph, n, target, normalised(graph.edges, len(graph)))


def alternatives(graph: Graph, target: int | None = None, n: int = 3) -> list[Alternative]:
    """Up to n routes to `target` (default: the logit of largest weight) that share no feature, strongest first."""
    if n < 1:
        raise UserError(f"expected n of at least 1; got {n}; ask for 3 routes")
    target = _target(graph, target)
    shares = normalised(graph.edges, len(graph))
    feature = graph.is_kind("neuron", "latent")
    banned = torch.zeros(len(graph), dtype=torch.bool)
    direct = (graph.edges.target == target) & graph.is_kind("token")[graph.edges.source]
    found: list[Alternative] = []
    while len(found) < n:
        best = _strongest(graph, 1, target, shares * ~(direct | banned[graph.edges.source]))
        features = tuple(i for path in best for i in path.nodes[:-1] if feature[i])
        if not features:
            break
        banned[list(features)] = True
        share = 1 - _passing_by(graph, shares, features, target)
        alone, remaining = (_left(graph, gone, target) for gone in (features, banned.nonzero()[:, 0].tolist()))
        found.append(Alternative(best[0], features, share, alone, remaining))
    return found


def ablated(graph: Graph, nodes: Sequence[int], factor: float = 0.0) -> Float[Tensor, "node"]:
    """Predicted value of every row when `nodes` are held at `factor` times their value; NaN for leaves.

    Compare with `graph.row_values`. An ablated feature's own row says what would have come in. UserError for an index
    outside the graph. The equation, and for what it is exact, are in the module header.
    """
    wrong = [i for i in nodes if not 0 <= i < len(graph)]
    if wrong:
        raise UserError(f"expected indices from 0 to {len(graph) - 1}; got {wrong[0]}; see graph.nodes")
    scale = torch.ones(len(graph), dtype=torch.float64)
    scale[list(nodes)] = factor
    held, known = set(nodes), graph.row_values.tolist()
    values = torch.full((len(graph),), float("nan"), dtype=torch.float64)
    values[~graph.row_values.isnan()] = 0
    for target, start, end in rows_of(graph.edges):
        change = graph.edges.weight[start:end].double() @ (scale[graph.edges.source[start:end]] - 1)
        values[target] = known[target] + change
        if target not in held and known[target]:
            scale[target] = values[target] / known[target]
    return values


def _target(graph: Graph, target: int | None) -> int:
    if target is None:
        target = max(graph.targets, key=lambda i: graph.nodes[i].weight, default=-1)
    if not 0 <= target < len(graph) or not bool((graph.edges.target == target).any()):
        raise UserError(f"expected the index of a node with incoming edges as target; got {target}; see graph.nodes")
    return target


def _left(graph: Graph, gone: Sequence[int], target: int) -> float:
    """The target's predicted value without `gone`, as a share of its value; NaN where that is 0."""
    value = float(graph.row_values[target])
    return float(ablated(graph, gone)[target]) / value if value else float("nan")


def _passing_by(graph: Graph, shares: Float[Tensor, "edge"], features: tuple[int, ...], target: int) -> float:
    """The share of the target's influence that reaches leaves without passing any of `features`."""
    by = torch.ones(len(graph), dtype=torch.float64)
    for row, start, end in rows_of(graph.edges):
        by[row] = shares[start:end].double() @ by[graph.edges.source[start:end]]
        if row in features:
            by[row] = 0
        if row == target:
            break
    return float(by[target])


def _strongest(graph: Graph, n: int, target: int, shares: Float[Tensor, "edge"]) -> list[Path]:
    strength, edge, rank = _best(graph, n, target, shares)
    found = []
    for place in range(n):
        if strength[target, place] > 0:
            found.append(_walk(graph, edge, rank, target, place, float(strength[target, place])))
    return found


def _best(graph: Graph, n: int, last: int, shares: Float[Tensor, "edge"]) -> tuple[Tensor, Tensor, Tensor]:
    """For every node up to `last`: strengths of its n best paths, and through which edge and source rank each comes."""
    strength = torch.zeros(len(graph), n, dtype=torch.float64)
    strength[graph.of_kind("token"), 0] = 1
    edge = torch.full((len(graph), n), -1, dtype=torch.int64)
    rank = torch.zeros(len(graph), n, dtype=torch.int64)
    for target, start, end in rows_of(graph.edges):
        if target > last:
            break
        candidates = (shares[start:end, None].double() * strength[graph.edges.source[start:end]]).flatten()
        best = candidates.topk(min(n, len(candidates)))
        strength[target, : len(best.values)] = best.values
        edge[target, : len(best.values)] = start + best.indices // n
        rank[target, : len(best.values)] = best.indices % n
    return strength, edge, rank


def _walk(graph: Graph, edge: Tensor, rank: Tensor, target: int, place: int, strength: float) -> Path:
    nodes, weights = [target], []
    while edge[nodes[0], place] >= 0:
        step, place = int(edge[nodes[0], place]), int(rank[nodes[0], place])
        weights.insert(0, float(graph.edges.weight[step]))
        nodes.insert(0, int(graph.edges.source[step]))
    return Path(tuple(nodes), tuple(weights), strength, _text(graph, nodes, weights))


def _text(graph: Graph, nodes: list[int], weights: list[float]) -> str:
    """One line: '<token>'@position →(+weight) feature@position → ... → 'target'."""

    def name(index: int) -> str:
        node = graph.nodes[index]
        return (
            repr(node.label)
            if node.kind in TARGETS
            else f"{node.label!r}@{node.position}"
            if node.kind == "token"
            else f"{node.label}@{node.position}"
        )

    steps = [f" →({weight:+.3g}) {name(index)}" for weight, index in zip(weights, nodes[1:], strict=True)]
    return name(nodes[0]) + "".join(steps)
