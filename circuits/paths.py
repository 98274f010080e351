"""The strongest paths from a prompt's tokens to a target.

A path's strength is the product of its edges' shares Ahat[t, s] = |A[t, s]| / sum_s |A[t, s]|: how much of the target
passes along it when every row is split in proportion. Nodes stand in causal order, so the n best paths into each node follow from
the n best into its sources (k-best dynamic programming, exact): strength[t, i] = i-th largest of Ahat[t, s] strength[s, j]
over sources s and ranks j, with strength 1 at tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..saes.errors import UserError
from .graph import Graph
from .scores import normalised


class Path(NamedTuple):
    """Node indices from a token to the target, the signed weight of each edge, and the product of their shares."""

    nodes: tuple[int, ...]
    weights: tuple[float, ...]
    strength: float
    text: str

    def __str__(self) -> str:
        return f"{self.strength:.4f}  {self.text}"


def paths(graph: Graph, n: int = 5, target: int | None = None) -> list[Path]:
    """The n strongest paths into node `target` (default: the logit of largest weight), strongest first."""
    if n < 1:
        raise UserError(f"expected n of at least 1; got {n}; ask for 5 paths")
    if target is None:
        target = max(
            (i for i, node in enumerate(graph.nodes) if node.kind == "logit"), key=lambda i: graph.nodes[i].weight
        )
    if not 0 <= target < len(graph) or graph.row_values[target].isnan():
        raise UserError(f"expected the index of a logit or feature node as target; got {target}; see graph.nodes")
    strength, edge, rank = _best(graph, n, target)
    found = []
    for place in range(n):
        if strength[target, place] > 0:
            found.append(_walk(graph, edge, rank, target, place, float(strength[target, place])))
    return found


def _best(graph: Graph, n: int, last: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For every node up to `last`: strengths of its n best paths, and through which edge and source rank each comes."""
    shares = normalised(graph.edges, len(graph))
    strength = torch.zeros(len(graph), n, dtype=torch.float64)
    strength[graph.of_kind("token"), 0] = 1
    edge = torch.full((len(graph), n), -1, dtype=torch.int64)
    rank = torch.zeros(len(graph), n, dtype=torch.int64)
    targets, counts = graph.edges.target.unique_consecutive(return_counts=True)
    start = 0
    for target, count in zip(targets.tolist(), counts.tolist(), strict=True):
        if target > last:
            break
        candidates = (
            shares[start : start + count, None] * strength[graph.edges.source[start : start + count]]
        ).flatten()
        best = candidates.topk(min(n, len(candidates)))
        strength[target, : len(best.values)] = best.values
        edge[target, : len(best.values)] = start + best.indices // n
        rank[target, : len(best.values)] = best.indices % n
        start += count
    return strength, edge, rank


def _walk(graph: Graph, edge: torch.Tensor, rank: torch.Tensor, target: int, place: int, strength: float) -> Path:
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
            if node.kind == "logit"
            else f"{node.label!r}@{node.position}"
            if node.kind == "token"
            else f"{node.label}@{node.position}"
        )

    steps = [f" →({weight:+.3g}) {name(index)}" for weight, index in zip(weights, nodes[1:], strict=True)]
    return name(nodes[0]) + "".join(steps)
