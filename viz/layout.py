"""Where the nodes of a circuit stand, and which of them are drawn.

A graph of one prompt can have ten thousand nodes; a picture holds about a hundred. The choice is by influence on the
targets (Ameisen et al. 2025, "Circuit Tracing", appendix on pruning): the incoming edges of every node are made
absolute and divided by their sum, a[t, s] = |w[t, s]| / Σ|w[t, ·]|, and influence flows backwards from the targets,

    influence = seed + aᵀ influence,        seed = the targets' own weights, normalised,

which ends after as many steps as the longest path because the graph has no cycles. Targets are always drawn. The picture is a grid: one column a token, one row a layer (rows without a node are left out),
embeddings below, targets on top; nodes of one cell stand side by side and the column is as wide as its fullest cell.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from ..circuits.graph import Graph, Node

EPSILON = 1e-12


@dataclass(frozen=True)
class Drawing:
    """What is drawn: node numbers of the graph with coordinates, edges strongest first, and the grid's labels.

    `x` and `y` are in cells (y grows upwards); `columns` are (centre, width, position or None), `rows` (y, label).
    """

    nodes: list[int]
    x: dict[int, float]
    y: dict[int, float]
    edges: list[tuple[int, int, float]]   # target, source, weight
    columns: list[tuple[float, float, int | None]]
    rows: list[tuple[float, str]]
    influence: Float[Tensor, "node"]


def influence(graph: Graph, steps: int = 256) -> Float[Tensor, "node"]:
    """The share of the targets' |incoming| that passes through each node; see the module's equation."""
    target, source, weight = graph.edges
    size = weight.detach().abs().double()
    total = torch.zeros(len(graph.nodes), dtype=torch.float64).index_add_(0, target, size)
    share = size / (total[target] + EPSILON)
    seed = torch.tensor([max(node.weight, EPSILON) * (node.kind == "logit") for node in graph.nodes], dtype=torch.float64)
    flow = seed / seed.sum().clamp_min(EPSILON)
    result = flow.clone()
    for _ in range(steps):
        flow = torch.zeros_like(flow).index_add_(0, source, share * flow[target])
        if not flow.any():
            break
        result += flow
    return result


def draw(graph: Graph, nodes: int = 120, edges: int = 400) -> Drawing:
    """Choose at most about `nodes` nodes and the `edges` strongest edges among them, and place them on the grid."""
    weight_of = influence(graph)
    chosen = _choose(graph, weight_of, nodes)
    y, rows = _rows(graph, chosen)
    x, columns = _columns(graph, chosen, y, weight_of)
    return Drawing(chosen, x, y, _strongest_edges(graph, chosen, edges), columns, rows, weight_of)


def _choose(graph: Graph, weight_of: Tensor, limit: int) -> list[int]:
    order = torch.argsort(weight_of, descending=True, stable=True).tolist()
    targets = [number for number, node in enumerate(graph.nodes) if node.kind == "logit"]
    kept = [number for number in order if graph.nodes[number].kind != "logit" and weight_of[number] > 0]
    return sorted(targets + kept[: max(limit - len(targets), 0)])


def _strongest_edges(graph: Graph, chosen: list[int], limit: int) -> list[tuple[int, int, float]]:
    target, source, weight = graph.edges
    drawn = torch.zeros(len(graph.nodes), dtype=torch.bool)
    drawn[chosen] = True
    inside = (drawn[target] & drawn[source]).nonzero().flatten()
    best = inside[torch.argsort(weight[inside].abs(), descending=True, stable=True)][:limit]
    return list(zip(target[best].tolist(), source[best].tolist(), weight[best].tolist(), strict=True))


def _level(node: Node) -> tuple[int, int]:
    if node.kind == "logit":
        return (2, 0)
    return (0, 0) if node.layer < 0 else (1, node.layer)


def _rows(graph: Graph, chosen: list[int]) -> tuple[dict[int, float], list[tuple[float, str]]]:
    levels = sorted({_level(graph.nodes[number]) for number in chosen})
    names = {0: "input", 2: "output"}
    rows = [(float(row), names.get(level[0], f"layer {level[1]}")) for row, level in enumerate(levels)]
    return {number: float(levels.index(_level(graph.nodes[number]))) for number in chosen}, rows


def _columns(graph: Graph, chosen: list[int], y: dict[int, float],
             weight_of: Tensor) -> tuple[dict[int, float], list[tuple[float, float, int | None]]]:
    cells: dict[tuple[int, float], list[int]] = defaultdict(list)
    for number in sorted(chosen, key=lambda number: -float(weight_of[number])):
        cells[graph.nodes[number].position, y[number]].append(number)
    x: dict[int, float] = {}
    columns: list[tuple[float, float, int | None]] = []
    left = 0.0
    for position in sorted({position for position, _ in cells}):
        here = [cell for (column, _), cell in cells.items() if column == position]
        width = max(1.6, float(max(map(len, here))) * 0.8 + 0.6)
        for cell in here:
            for place, number in enumerate(cell):
                x[number] = left + width / 2 + (place - (len(cell) - 1) / 2) * 0.8
        columns.append((left + width / 2, width, None if position < 0 else position))
        left += width
    return x, columns
