"""Where the nodes of a circuit stand, and which of them are drawn.

A graph of one prompt can have ten thousand nodes; a picture holds about a hundred. The choice is by influence on the
targets (circuits/scores.py: |weights| normalised by row, summed over all paths), after which the heaviest edges among
the chosen nodes are drawn. Targets are always drawn; leaves that hold everything else (`rest`) are chosen like others, so
a picture does not hide how much it leaves out.

The picture is a grid: one column a token (and one for what has no position), one row a layer (rows without a node are
left out), embeddings below, targets on top; nodes of one cell stand side by side and a column is as wide as its fullest
cell.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..circuits import Graph, Node
from ..circuits.scores import influence, normalised, target_weights


LETTERS = 13   # of a token for which its column makes room


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


def shares_of_influence(graph: Graph) -> Float[Tensor, "node"]:
    """The share of the targets that passes through each node; a target's own share is its weight."""
    weights = target_weights(graph)
    weights = weights / weights.sum().clamp_min(1e-12)
    return weights + influence(graph.edges, normalised(graph.edges, len(graph)), weights)


def draw(graph: Graph, nodes: int = 120, edges: int = 400) -> Drawing:
    """Choose at most about `nodes` nodes and the `edges` strongest edges among them, and place them on the grid."""
    share = shares_of_influence(graph)
    chosen = _choose(graph, share, nodes)
    y, rows = _rows(graph, chosen)
    x, columns = _columns(graph, chosen, y, share)
    return Drawing(chosen, x, y, _strongest_edges(graph, chosen, edges), columns, rows, share)


def _choose(graph: Graph, share: Tensor, limit: int) -> list[int]:
    order = torch.argsort(share, descending=True, stable=True).tolist()
    targets = [number for number, node in enumerate(graph.nodes) if node.kind == "logit"]
    kept = [number for number in order if graph.nodes[number].kind != "logit" and share[number] > 0]
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
             share: Tensor) -> tuple[dict[int, float], list[tuple[float, float, int | None]]]:
    cells: dict[tuple[int, float], list[int]] = defaultdict(list)
    for number in sorted(chosen, key=lambda number: -float(share[number])):
        cells[graph.nodes[number].position, y[number]].append(number)
    tokens = graph.metadata.get("token_strings", [])
    x: dict[int, float] = {}
    columns: list[tuple[float, float, int | None]] = []
    left = 0.0
    for position in sorted({position for position, _ in cells}):
        here = [cell for (column, _), cell in cells.items() if column == position]
        letters = len(tokens[position]) if 0 <= position < len(tokens) else 0
        width = max(1.6, max(map(len, here)) * 0.8 + 0.6, 0.36 * min(letters, LETTERS) + 0.3)
        for cell in here:
            for place, number in enumerate(cell):
                x[number] = left + width / 2 + (place - (len(cell) - 1) / 2) * 0.8
        columns.append((left + width / 2, width, None if position < 0 else position))
        left += width
    return x, columns
