"""Where the nodes of a circuit stand, and which nodes and edges are drawn.

A graph of one prompt can have ten thousand nodes and thirty million edges; a picture holds about a hundred nodes. They are
chosen by influence on the targets (circuits/simplify/scores.py: |weights| normalised by row, summed over all paths). Targets are always
drawn; leaves that are no one thing (rest, error, bias, first, position) get at most a quarter of the places, or they would
take most of them. An edge's strength is the influence that it carries, the same measure by which `prune` keeps edges:

    strength[t, s] = |w[t, s]| / sum_s |w[t, s]| * influence[t]

and not |w| itself, which compares contributions to different targets: one neuron of large pre-activation would fill the
picture.

The picture is a grid: one column a token (and one for what has no position), one row a layer (rows without a node are
left out), embeddings below, targets on top; nodes of one cell stand side by side and a column is as wide as its fullest
cell.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..circuits import Graph, Node
from ..circuits.graph import FACTORS, TARGETS
from ..circuits.simplify.scores import influence, normalised, target_weights

LETTERS = 13  # of a token for which its column makes room
NAMED = ("token", "latent", "neuron")  # kinds that are one thing each


class DrawnEdge(NamedTuple):
    """An edge between drawn nodes; `strength` is the influence that it carries, 1 for the strongest drawn."""

    target: int
    source: int
    weight: float
    strength: float


@dataclass(frozen=True)
class Drawing:
    """What is drawn: node numbers of the graph with coordinates, edges strongest first, and the grid's labels.

    `x` and `y` are in cells (y grows upwards); `columns` are (centre, width, position or None), `rows` (y, label).
    """

    nodes: list[int]
    x: dict[int, float]
    y: dict[int, float]
    edges: list[DrawnEdge]
    columns: list[tuple[float, float, int | None]]
    rows: list[tuple[float, str]]
    influence: Float[Tensor, "node"]


def draw(graph: Graph, nodes: int = 120, edges: int = 400) -> Drawing:
    """Choose at most about `nodes` nodes and the `edges` strongest edges among them, and place them on the grid."""
    shares = normalised(graph.edges, len(graph))
    through = flow(graph, shares)
    chosen = _choose(graph, through, nodes)
    y, rows = _rows(graph, chosen)
    x, columns = _columns(graph, chosen, y, through)
    return Drawing(chosen, x, y, _strongest(graph, chosen, shares, through, edges), columns, rows, through)


def token_strings(graph: Graph) -> list[str]:
    """The prompt's tokens as the graph's file has them; [] where it has none, or something else there."""
    found = graph.metadata.get("token_strings")
    return [str(token) for token in found] if isinstance(found, list) else []


def flow(graph: Graph, shares: Float[Tensor, "edge"] | None = None) -> Float[Tensor, "node"]:
    """The share of the targets' weight that passes through each node; `shares` are the edges' (normalised) where known."""
    weights = target_weights(graph)
    weights = weights / weights.sum().clamp_min(1e-12)
    shares = normalised(graph.edges, len(graph)) if shares is None else shares
    return weights + influence(graph.edges, shares, weights)


def _choose(graph: Graph, through: Float[Tensor, "node"], limit: int) -> list[int]:
    order = [number for number in through.argsort(descending=True, stable=True).tolist() if through[number] > 0]
    kinds = [node.kind for node in graph.nodes]
    targets = [number for number, kind in enumerate(kinds) if kind in TARGETS]
    named = [number for number in order if kinds[number] in NAMED]
    others = [number for number in order if kinds[number] not in NAMED and kinds[number] not in TARGETS]
    free = max(limit - len(targets), 0)
    others = others[: max(free // 4, free - len(named))]
    return sorted([*targets, *others, *named[: free - len(others)]])


def _strongest(
    graph: Graph, chosen: list[int], shares: Float[Tensor, "edge"], through: Float[Tensor, "node"], limit: int
) -> list[DrawnEdge]:
    target, source, weight = graph.edges
    drawn = torch.zeros(len(graph), dtype=torch.bool)
    drawn[chosen] = True
    inside = (drawn[target] & drawn[source]).nonzero().flatten()
    carried = shares[inside] * through[target[inside]]
    best = carried.argsort(descending=True, stable=True)[:limit]
    relative = carried[best] / carried[best].max().clamp_min(1e-300) if len(best) else carried
    picked = inside[best]
    columns = (target[picked], source[picked], weight[picked], relative)
    return [DrawnEdge(*edge) for edge in zip(*(column.tolist() for column in columns), strict=True)]


# Rows of one layer, upwards; the last is its MLP and all else.
STAGES = ("stream", "attn", "mid", "gates", "")


def _stage(node: Node) -> int:
    """Which of its layer's rows a node stands in, so that edges inside a layer lead upwards."""
    parts = (
        "hook_resid_pre" in node.site,
        node.kind == "head" or "attn" in node.site or "ln1_post" in node.site,
        "hook_resid_mid" in node.site,
        node.kind in FACTORS,
        True,
    )
    return parts.index(True)


def _level(node: Node) -> tuple[int, int, int]:
    if node.kind in TARGETS:
        return (2, 0, 0)
    return (0, 0, 0) if node.layer < 0 else (1, node.layer, _stage(node))


def _rows(graph: Graph, chosen: list[int]) -> tuple[dict[int, float], list[tuple[float, str]]]:
    levels = sorted({_level(graph.nodes[number]) for number in chosen})
    names = {0: "input", 2: "output"}
    rows = [
        (float(row), names.get(place) or (f"L{layer} {STAGES[stage]}" if STAGES[stage] else f"layer {layer}"))
        for row, (place, layer, stage) in enumerate(levels)
    ]
    return {number: float(levels.index(_level(graph.nodes[number]))) for number in chosen}, rows


def _columns(
    graph: Graph, chosen: list[int], y: dict[int, float], share: Tensor
) -> tuple[dict[int, float], list[tuple[float, float, int | None]]]:
    cells: dict[tuple[int, float], list[int]] = defaultdict(list)
    for number in sorted(chosen, key=lambda number: -float(share[number])):
        cells[graph.nodes[number].position, y[number]].append(number)
    tokens = token_strings(graph)
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
