"""Choosing nodes by influence, as circuit-tracer does: expand the rows of the most influential features first.

With the rows recorded so far, Ahat[t, s] = |A[t, s]| / sum_s |A[t, s]|, the influence of every candidate is one pass over
those rows from the top down (scores.py); the most influential candidates that have no row yet come next, a chunk at a time, until
`max_features` have one. Rows stay where they were recorded: nothing is copied to rank again, and at the end the columns
of candidates without a row are added to their rest leaves. The price is a dense [row candidate] matrix, so candidates are at most
`CANDIDATES` (or twice `max_features`) active features, by |total attribution|.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..saes.sites import layer_of
from .graph import FEATURES, Node
from .layout import Chosen, Layout, choose, split_places
from .machine import Machine
from .record import Recorded, Targets, record_rows
from .sweep import Totals

CANDIDATES = 16384
CHUNKS, LARGEST = 16, 512  # how often influence is ranked anew, and the most rows between two rankings


class Expanded(NamedTuple):
    """Rows over all candidates, in the order in which they were recorded."""

    node: Int[Tensor, "row"]
    value: Float[Tensor, "row"]
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
    features = {int(node): (each, place) for each in layout.rows for place, node in enumerate(each.nodes.tolist())}
    count = len(layout.nodes)
    size = min(max_features, len(features)) + len(weights)
    rows = Expanded(
        torch.empty(size, dtype=torch.int64),
        machine.frozen.embed.new_empty(size, device="cpu"),
        machine.frozen.embed.new_empty(size, count, device="cpu"),
    )
    done, waiting = 0, torch.zeros(count, dtype=torch.bool)
    waiting[list(features)] = True
    batch, chunk = targets, min(LARGEST, max_features // CHUNKS + 1)
    while batch:
        for recorded in record_rows(machine, layout.columns, batch, memory_mib):
            stop = done + len(recorded.node)
            rows.node[done:stop], rows.value[done:stop] = recorded.node, recorded.value.cpu()
            rows.weights[done:stop] = recorded.weights.cpu()
            done = stop
        arriving = _influence(rows, done, count, weights)
        batch = list(_next(features, arriving, waiting, min(chunk, size - done)))
    return Expanded(*(field[:done] for field in rows))


def _influence(rows: Expanded, done: int, count: int, weights: Float[Tensor, "target"]) -> Float[Tensor, "column"]:
    """What reaches every column through the rows there are; targets are numbered from `count` on."""
    through = torch.cat([torch.zeros(count, dtype=torch.float64), weights.double()])
    for row in rows.node[:done].argsort(descending=True).tolist():
        size = rows.weights[row].abs().double()
        through[:count] += through[rows.node[row]] / size.sum().clamp_min(1e-300) * size
    return through[:count]


def _next(
    features: dict[int, tuple[Targets, int]],
    arriving: Float[Tensor, "column"],
    waiting: Bool[Tensor, "column"],
    most: int,
) -> Iterator[Targets]:
    """The rows to record now: the `most` influential candidates that have none, by the Targets that build them."""
    open_influence = torch.where(waiting, arriving, 0.0)
    best = open_influence.topk(min(most, int((open_influence > 0).sum()))).indices
    waiting[best] = False
    groups: dict[int, tuple[Targets, list[int]]] = {}
    for node in best.sort().values.tolist():
        each, place = features[node]
        groups.setdefault(id(each), (each, []))[1].append(place)
    for each, places in groups.values():
        yield _only(each, torch.tensor(places))


def _only(targets: Targets, places: Int[Tensor, "row"]) -> Targets:
    return targets._replace(
        positions=targets.positions[places],
        nodes=targets.nodes[places],
        build=lambda chosen: targets.build(places[chosen]),
    )


def chosen_of(machine: Machine, candidate: Chosen, layout: Layout, rows: Expanded) -> Chosen:
    """Positions and slots, per source, of the candidates that have a row."""
    has_row = torch.zeros(len(layout.nodes), dtype=torch.bool)
    has_row[rows.node[rows.node < len(layout.nodes)]] = True
    features = torch.tensor([node.kind in FEATURES for node in layout.nodes])
    kept, start = has_row[features], 0
    owner, place = [], []
    for index, (positions, slots) in enumerate(candidate):
        mine = kept[start : start + len(positions)]
        width = machine.sources[index].values.shape[1]
        place.append((positions * width + slots)[mine.to(positions.device)])
        owner.append(torch.full_like(place[-1], index))
        start += len(positions)
    return split_places(machine.sources, torch.cat(owner), torch.cat(place))


def refold(machine: Machine, rows: Expanded, old: Layout, new: Layout, targets: int) -> Iterator[Recorded]:
    """The rows in the columns of the final layout: candidates without a row go into the rest leaf where they are first written."""
    to = _columns(machine, old.nodes, new.nodes)
    number = torch.cat([to, torch.arange(targets) + len(new.nodes)])
    for part in torch.arange(len(rows.node)).split(LARGEST):
        weights = rows.weights[part]
        folded = weights.new_zeros(len(part), len(new.nodes)).index_add_(1, to, weights)
        yield Recorded(number[rows.node[part]], rows.value[part], folded)


def _columns(machine: Machine, old: list[Node], new: list[Node]) -> Int[Tensor, "column"]:
    written = {source.site: machine.cuts[min(source.writes)].site for source in machine.sources}
    known = {(node.kind, node.layer, node.site, node.position, node.index): place for place, node in enumerate(new)}
    to = []
    for node in old:
        place = known.get((node.kind, node.layer, node.site, node.position, node.index))
        if place is None:
            site = written[node.site]
            place = known["rest", layer_of(site) or 0, site, node.position, -1]
        to.append(place)
    return torch.tensor(to)
