"""Which sources become nodes, and where every node stands: the order of nodes and of columns in a recorded row.

Nodes are in causal order: leaves (token, position, bias, then per layer first, error, rest), features by layer, position and
slot, and the logit targets last. A node's index is its column, so a recorded row needs no renumbering.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .graph import Node
from .sources import Rows, Source
from .sweep import Columns, Machine, Totals
from .targets import Target

Chosen = list[tuple[Tensor, Tensor]]  # per layer: positions [feature] and slots [feature]


def choose(totals: Totals, sources: list[Source | None], max_features: int) -> Chosen:
    """The active sources of largest |total attribution|, per layer, ordered by position and slot."""
    layers, places, sizes = [], [], []
    for layer, (total, source) in enumerate(zip(totals.sources, sources, strict=True)):
        if total is None or source is None:
            continue
        size = torch.where(source.values != 0, total.abs(), -1.0).flatten()
        best = size.topk(min(max_features, len(size)))
        alive = best.values >= 0
        layers.append(torch.full_like(best.indices[alive], layer))
        places.append(best.indices[alive])
        sizes.append(best.values[alive])
    nothing = torch.empty(0, dtype=torch.int64)
    if not layers:
        return [(nothing, nothing) for _ in sources]
    layer, place = torch.cat(layers), torch.cat(places)
    keep = torch.cat(sizes).topk(min(max_features, len(layer))).indices
    layer, place = layer[keep], place[keep]
    chosen = []
    for index, source in enumerate(sources):
        mine = place[layer == index].sort().values
        width = 1 if source is None else source.values.shape[1]
        chosen.append((mine // width, mine % width))
    return chosen


def lay_out(
    machine: Machine, totals: Totals, chosen: Chosen, targets: list[Target], logits: Rows, strings: list[str]
) -> tuple[list[Node], Columns]:
    """All nodes in causal order, and the columns that rows are recorded in."""
    frozen = machine.frozen
    layers, last = len(frozen.blocks), len(frozen.tokens) - 1
    nodes = [
        Node("token", -1, place, *rest)
        for place, rest in enumerate(
            zip(frozen.tokens.tolist(), _norms(frozen.embed), strings, totals.token.tolist(), strict=True)
        )
    ]
    position = None
    if frozen.pos_embed is not None and totals.position is not None:
        position = _add(nodes, "position", -1, frozen.pos_embed, totals.position)
    bias = len(nodes)
    nodes += [Node("bias", layer, -1, -1, 0.0, "bias", total) for layer, total in enumerate(totals.bias)]
    columns = Columns(0, position, bias, {}, {}, {}, {}, [], 0)
    for layer, source in enumerate(machine.sources):
        if source is not None:
            _add_leaves(nodes, columns, layer, source, totals, chosen)
    features = [_add_features(nodes, machine.sources[i], totals.sources[i], chosen[i], i) for i in range(layers)]
    for target, value in zip(targets, logits.value.tolist(), strict=True):
        total = target.weight * value
        nodes.append(Node("logit", layers, last, target.ids[0], value, target.label, total, target.weight))
    return nodes, columns._replace(features=features, count=len(nodes))


def _norms(vectors: Tensor) -> list[float]:
    return vectors.norm(dim=1).tolist()


def _add(nodes: list[Node], kind: str, layer: int, vectors: Tensor, totals: Tensor) -> int:
    """One leaf per token; returns the first one's column."""
    start = len(nodes)
    for place, (norm, total) in enumerate(zip(_norms(vectors), totals.tolist(), strict=True)):
        nodes.append(Node(kind, layer, place, -1, norm, kind, total))
    return start


def _add_leaves(
    nodes: list[Node], columns: Columns, layer: int, source: Source, totals: Totals, chosen: Chosen
) -> None:
    """A layer's first, error and rest leaves."""
    columns.first[layer] = len(nodes)
    norm = float(source.leaves.first[0].norm())
    nodes.append(Node("first", layer, 0, -1, norm, "first position", totals.first[layer]))
    error, total = totals.error[layer], totals.sources[layer]
    if source.leaves.error is not None and error is not None:
        columns.error[layer] = _add(nodes, "error", layer, source.leaves.error, error)
    if total is not None:
        values, remaining = source.values.clone(), total.clone()
        values[chosen[layer]], remaining[chosen[layer]] = 0, 0
        columns.rest_vectors[layer] = source.write(values)
        columns.rest[layer] = _add(nodes, "rest", layer, columns.rest_vectors[layer], remaining.sum(1))


def _add_features(
    nodes: list[Node], source: Source | None, total: Tensor | None, chosen: tuple[Tensor, Tensor], layer: int
) -> list[tuple[int, int, Tensor]]:
    """A layer's features; returns (token, first column, vectors) for each token that has some."""
    positions, slots = chosen
    if source is None or total is None or not len(positions):
        return []
    groups, vectors = [], source.sources(positions, slots)
    for token in positions.unique().tolist():
        mine = (positions == token).nonzero()[:, 0]
        groups.append((token, len(nodes) + int(mine[0]), vectors[mine].T))
    index, value = source.latent(positions, slots).tolist(), source.values[positions, slots].tolist()
    table = zip(positions.tolist(), index, value, total[positions, slots].tolist(), strict=True)
    for place, feature, activation, attribution in table:
        label = f"L{layer} {source.kind} {feature}"
        nodes.append(Node(source.kind, layer, place, feature, activation, label, attribution))
    return groups
