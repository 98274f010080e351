"""Choosing nodes by influence, as circuit-tracer does: expand the rows of the most influential features first.

With the rows recorded so far, Ahat[t, s] = |A[t, s]| / sum_s |A[t, s]|, the influence of every candidate is one pass over
those rows from the top down (scores.py); the most influential candidates that have no row yet come next, a chunk at a time, until
`max_features` have one. Rows stay where they were recorded: nothing is copied to rank again, and at the end the columns
of candidates without a row are added to their rest leaves. A neuron traced in two gets two rows, its factors', each with
half of its influence. The price is a dense [row candidate] matrix, so candidates are at most
`CANDIDATES` (or twice `max_features`) active features, by |total attribution|.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..graph import FACTORS, FEATURES
from .layout import Chosen, Layout, Split, choose, split_places
from .machine import Machine
from .record import Recorded, Targets, record_rows
from .sweep import Totals

CANDIDATES = 16384
CHUNKS, LARGEST, FOLDED = 8, 2048, 512  # how often influence is ranked anew, and the most rows between two rankings


class Expanded(NamedTuple):
    """Rows over all candidates, in the order in which they were recorded; `stage` numbers the stations, targets highest."""

    node: Int[Tensor, "row"]
    stage: Int[Tensor, "row"]
    value: Float[Tensor, "row"]
    mass: Float[Tensor, "row"]
    weights: Float[Tensor, "row column"]


def candidates(totals: Totals, machine: Machine, max_features: int) -> Chosen:
    """The active features among which influence chooses."""
    return choose(totals, machine.sources, max(CANDIDATES, 2 * max_features))


def expand(
    machine: Machine,
    layout: Layout,
    targets: list[Targets],
    weights: Float[Tensor, "target"],
    max_features: int,
    memory_mib: int,
) -> Expanded:
    """Record the targets' rows (numbered from the end of the layout's nodes on), then the most influential features'."""
    features = _rows_of(layout)
    count, left = len(layout.nodes), min(max_features, len(features))
    size = left * max(map(len, features.values()), default=1) + len(weights)
    node, stage = torch.empty(2, size, dtype=torch.int64)
    value, mass = machine.frozen.embed.new_empty(2, size, device="cpu")
    rows = Expanded(node, stage, value, mass, machine.frozen.embed.new_empty(size, count, device="cpu"))
    stages = _stages(layout)
    done, waiting = 0, torch.zeros(count, dtype=torch.bool)
    waiting[list(features)] = True
    batch, chunk = targets, min(LARGEST, max_features // CHUNKS + 1)
    while batch:
        for recorded in record_rows(machine, layout.columns, batch, memory_mib):
            stop = done + len(recorded.node)
            rows.node[done:stop], rows.value[done:stop] = recorded.node, recorded.value.cpu()
            rows.weights[done:stop], rows.stage[done:stop] = (
                recorded.weights.cpu(),
                stages[recorded.node.clamp_max(count)],
            )
            rows.mass[done:stop] = rows.weights[done:stop].abs().sum(1)
            done = stop
        arriving = _influence(Expanded(*(field[:done] for field in rows)), layout, stages, weights)
        best = _most_influential(arriving, waiting, min(chunk, left))
        waiting[best] = False
        left -= len(best)
        batch = list(_rows([row for node in best.tolist() for row in features[node]]))
    return Expanded(*(field[:done] for field in rows))


def _rows_of(layout: Layout) -> dict[int, list[tuple[Targets, int]]]:
    """Which rows belong to each feature: its Targets and the place there; two for a neuron traced in two."""
    rows = {node: [(each, place)] for each in layout.rows for place, node in enumerate(each.nodes.tolist())}
    for split in layout.splits:
        for neuron, gate, up in zip(split.neuron.tolist(), split.gate.tolist(), split.up.tolist(), strict=True):
            rows[neuron] = rows.pop(gate) + rows.pop(up)
    return rows


def _stages(layout: Layout) -> Int[Tensor, "node"]:
    """The number of the station at which each node is read, from 1; 0 for leaves, and the last entry, highest, for all targets."""
    order = {station: place for place, station in enumerate(sorted({each.station for each in layout.rows}), start=1)}
    stages = torch.zeros(len(layout.nodes) + 1, dtype=torch.int64)
    for each in layout.rows:
        stages[each.nodes] = order[each.station]
    stages[-1] = len(order) + 1
    return stages


def _influence(
    rows: Expanded, layout: Layout, stages: Int[Tensor, "node"], weights: Float[Tensor, "target"]
) -> Float[Tensor, "column"]:
    """What reaches every column through the rows there are; targets are numbered from the last column on.

    Rows read at one station have no edges among themselves, so each run of them is one product.
    """
    count = len(layout.nodes)
    through = torch.cat([torch.zeros(count, dtype=torch.float64), weights.double()])
    splits = {int(stages[split.gate[0]]): split for split in layout.splits if len(split.neuron)}
    kinds, counts = rows.stage.unique_consecutive(return_counts=True)
    stops = counts.cumsum(0)
    runs = zip(kinds.tolist(), (stops - counts).tolist(), stops.tolist(), strict=True)
    for stage, start, stop in sorted(runs, reverse=True):
        if stage in splits:
            _spread(through, splits.pop(stage))
        passing = through[rows.node[start:stop]] / rows.mass[start:stop].double().clamp_min(1e-300)
        through[:count] += passing.to(rows.weights) @ rows.weights[start:stop].abs()
    return through[:count]


def _spread(through: Float[Tensor, "node"], split: Split) -> None:
    """Half of a neuron's influence goes to each of its factors."""
    for factor in (split.gate, split.up):
        through[factor] += through[split.neuron] / 2


def _most_influential(
    arriving: Float[Tensor, "column"], waiting: Bool[Tensor, "column"], most: int
) -> Int[Tensor, "feature"]:
    """The candidates to record now, in causal order; those that no influence reaches are never recorded."""
    reached = torch.where(waiting, arriving, 0.0)
    return reached.topk(min(most, int((reached > 0).sum()))).indices.sort().values


def _rows(wanted: list[tuple[Targets, int]]) -> Iterator[Targets]:
    """Rows by the Targets that build them."""
    groups: dict[int, tuple[Targets, list[int]]] = {}
    for each, place in wanted:
        groups.setdefault(id(each), (each, []))[1].append(place)
    for each, places in groups.values():
        yield each.only(torch.tensor(places))


def _has_row(layout: Layout, rows: Expanded) -> Bool[Tensor, "node"]:
    """Which nodes have a row, or two by their factors."""
    has_row = torch.zeros(len(layout.nodes), dtype=torch.bool)
    has_row[rows.node[rows.node < len(layout.nodes)]] = True
    for split in layout.splits:
        has_row[split.neuron] = has_row[split.gate]
    return has_row


def chosen_of(machine: Machine, candidate: Chosen, layout: Layout, rows: Expanded) -> Chosen:
    """Positions and slots, per source, of the candidates that have a row."""
    features = torch.tensor([node.kind in FEATURES for node in layout.nodes])
    kept, start = _has_row(layout, rows)[features], 0
    owner, place = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)]
    for index, (positions, slots) in enumerate(candidate):
        mine = kept[start : start + len(positions)]
        width = machine.sources[index].values.shape[1]
        place.append((positions * width + slots).cpu()[mine])
        owner.append(torch.full_like(place[-1], index))
        start += len(positions)
    return split_places(machine.sources, torch.cat(owner), torch.cat(place))


def refold(machine: Machine, rows: Expanded, old: Layout, new: Layout, targets: int) -> Iterator[Recorded]:
    """The rows in the columns of the final layout: candidates without a row go into the rest leaf where they are first written."""
    to = _columns(machine, rows, old, new)
    number = torch.cat([to, torch.arange(targets) + len(new.nodes)])
    for part in torch.arange(len(rows.node)).split(FOLDED):
        weights = rows.weights[part]
        folded = weights.new_zeros(len(part), len(new.nodes)).index_add_(1, to, weights)
        yield Recorded(number[rows.node[part]], rows.value[part], folded)
    for split in new.splits:
        for part in torch.arange(len(split.neuron)).split(FOLDED):
            halves = rows.weights.new_zeros(len(part), len(new.nodes))
            for factor in (split.gate, split.up):
                halves[torch.arange(len(part)), factor[part]] = split.value[part] / 2
            yield Recorded(split.neuron[part], split.value[part], halves)


def _columns(machine: Machine, rows: Expanded, old: Layout, new: Layout) -> Int[Tensor, "column"]:
    """The new column of every old one. Both layouts have one order, so what stays is matched by that; leaves by their cut."""
    leaves = {name: place for place, name in enumerate(_leaf_names(machine, new)) if name}
    written = {source.site: min(source.writes) for source in machine.sources}
    kinds = (*FEATURES, *FACTORS)
    stays = {kind: iter([place for place, node in enumerate(new.nodes) if node.kind == kind]) for kind in kinds}
    to = []
    for node, name, has_row in zip(old.nodes, _leaf_names(machine, old), _has_row(old, rows).tolist(), strict=True):
        if has_row:
            to.append(next(stays[node.kind]))
        else:
            to.append(leaves[name or ("rest", written[node.site], node.position)])
    return torch.tensor(to)


def _leaf_names(machine: Machine, layout: Layout) -> Iterator[tuple[Any, ...]]:
    """A name for every leaf, which it has in all layouts: a cut's leaves follow its `first`. () for features."""
    stations, station = iter(machine.cuts), None
    for node in layout.nodes:
        if node.kind == "first":
            station = next(stations)
        is_leaf = node.kind not in (*FEATURES, *FACTORS)
        yield (node.kind, station or node.layer, node.position) if is_leaf else ()
