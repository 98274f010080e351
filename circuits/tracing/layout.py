"""Which sources become nodes, and where every node stands: the order of nodes and of columns in a recorded row.

Nodes are in causal order: leaves (token, position, bias, then per cut first, error, rest), features by the station they are
read at, position and slot, and the targets last. A node's index is its column, so a recorded row needs no renumbering.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from ...saes.sites import layer_of
from ..graph import Node
from .machine import Cut, Machine
from .record import Columns, Meeting, Targets
from .sources import Factor, Neurons, Rows, Source
from .stations import Station
from .sweep import Totals, block_of

Chosen = list[tuple[Tensor, Tensor]]  # per source: positions [feature] and slots [feature], ordered


class Layout(NamedTuple):
    """All nodes but the targets; columns; the features' rows; and for gated neurons split in two, their own rows."""

    nodes: list[Node]
    columns: Columns
    rows: list[Targets]
    splits: list[Split]


class Split(NamedTuple):
    """Neurons whose row is half their gate's and half their up projection's: nodes, and the first nodes of the factors."""

    neuron: Int[Tensor, "row"]
    gate: Int[Tensor, "row"]
    up: Int[Tensor, "row"]
    value: Tensor


def choose(totals: Totals, sources: list[Source], max_features: int) -> Chosen:
    """The active sources of largest |total attribution|, per source, ordered by position and slot."""
    owner, places, sizes = [], [], []
    for index, (total, source) in enumerate(zip(totals.sources, sources, strict=True)):
        if total is None:
            continue
        size = torch.where(source.values != 0, total.abs(), -1.0).flatten()
        best = size.topk(min(max_features, len(size)))
        alive = best.values >= 0
        owner.append(torch.full_like(best.indices[alive], index))
        places.append(best.indices[alive])
        sizes.append(best.values[alive])
    nothing = torch.empty(0, dtype=torch.int64)
    if not owner:
        return [(nothing, nothing) for _ in sources]
    owners, place = torch.cat(owner), torch.cat(places)
    keep = torch.cat(sizes).topk(min(max_features, len(owners))).indices
    return split_places(sources, owners[keep], place[keep])


def split_places(sources: list[Source], owner: Int[Tensor, "feature"], place: Int[Tensor, "feature"]) -> Chosen:
    """Flat places (position * slots + slot) of sources, as positions and slots of each, ordered."""
    chosen = []
    for index, source in enumerate(sources):
        mine, width = place[owner == index].sort().values, source.values.shape[1]
        chosen.append((mine // width, mine % width))
    return chosen


def lay_out(machine: Machine, totals: Totals, chosen: Chosen, strings: list[str], bounded: bool = False) -> Layout:
    """Nodes and columns; `bounded` adds the two leaves that hold what `max_edges` drops of a row, by sign."""
    frozen = machine.frozen
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
    nodes += [
        Node("bias", layer, -1, -1, 0.0, f"L{layer} bias" if layer < len(frozen.blocks) else "output bias", total)
        for layer, total in enumerate(totals.bias)
    ]
    if bounded:
        nodes += [Node("rest", -1, -1, -1, 0.0, f"everything else that {does} it") for does in ("raises", "lowers")]
    leaves = {station: _add_leaves(nodes, machine, station, totals, chosen) for station in machine.cuts}
    rows, splits, first = [], [], {}
    for index, source in enumerate(machine.sources):
        is_split = isinstance(source, Neurons) and source.is_split
        if isinstance(source, Neurons) and is_split:
            splits.append(_add_factors(nodes, rows, source, chosen[index], totals.sources[index]))
        first[index] = len(nodes)
        _add_features(nodes, source, totals.sources[index], chosen[index])
        if not is_split:
            rows.append(_feature_rows(source, chosen[index], first[index]))
    cuts = {
        station: _meetings(machine, station, chosen, first, leaves[station], bias + block_of(machine, station))
        for station in machine.cuts
    }
    return Layout(
        nodes, Columns(0, position, bias, cuts, len(nodes)), [each for each in rows if len(each.nodes)], splits
    )


def _norms(vectors: Tensor) -> list[float]:
    return vectors.norm(dim=1).tolist()


def _add(nodes: list[Node], kind: str, layer: int, vectors: Tensor, totals: Tensor, site: str = "") -> int:
    """One leaf per token; returns the first one's column."""
    start = len(nodes)
    for place, (norm, total) in enumerate(zip(_norms(vectors), totals.tolist(), strict=True)):
        nodes.append(Node(kind, layer, place, -1, norm, kind if layer < 0 else f"L{layer} {kind}", total, site=site))
    return start


def _add_leaves(
    nodes: list[Node], machine: Machine, station: Station, totals: Totals, chosen: Chosen
) -> list[tuple[int, Tensor]]:
    """A cut's first, error and rest leaves, as (column of token 0, vectors [token width])."""
    cut = machine.cuts[station]
    layer = layer_of(cut.site) or 0
    first = len(nodes)
    nodes.append(
        Node(
            "first",
            layer,
            0,
            -1,
            float(cut.first.norm()),
            f"L{layer} first position",
            totals.first.get(station, 0.0),
            site=cut.site,
        )
    )
    leaves = [(first, cut.first[None])]
    if cut.error is not None:
        total = totals.error.get(station, cut.error.new_zeros(len(cut.error)))
        leaves.append((_add(nodes, "error", layer, cut.error, total, cut.site), cut.error))
    rest, total = _rest(machine, station, cut, totals, chosen)
    if rest is not None:
        leaves.append((_add(nodes, "rest", layer, rest, total, cut.site), rest))
    return leaves


def _rest(machine: Machine, station: Station, cut: Cut, totals: Totals, chosen: Chosen) -> tuple[Tensor | None, Tensor]:
    """The sum of what was not chosen, and its total attribution (counted where a source is first written)."""
    rest, total = None, cut.constant.new_zeros(len(cut.constant))
    for index in cut.writers:
        source, arrived = machine.sources[index], totals.sources[index]
        values = source.values.clone()
        values[chosen[index]] = 0
        if values.any():
            written = source.write(station, values)
            rest = written if rest is None else rest + written
            if arrived is not None and station == min(source.writes):
                remaining = arrived.clone()
                remaining[chosen[index]] = 0
                total = total + remaining.sum(1)
    return rest, total


def _add_features(nodes: list[Node], source: Source, total: Tensor | None, chosen: tuple[Tensor, Tensor]) -> None:
    positions, slots = chosen
    if not len(positions):
        return
    index, value = source.latent(positions, slots).tolist(), source.values[positions, slots].tolist()
    attributions = [0.0] * len(value) if total is None else total[positions, slots].tolist()
    layer, label, site = layer_of(source.site) or 0, source.label, source.site
    for place, feature, activation, attribution in zip(positions.tolist(), index, value, attributions, strict=True):
        nodes.append(Node(source.kind, layer, place, feature, activation, f"{label} {feature}", attribution, site=site))


def _feature_rows(source: Source, chosen: tuple[Tensor, Tensor], first: int, factor: Factor = "whole") -> Targets:
    positions, slots = chosen

    def build(places: Tensor) -> Rows:
        here = places.to(positions.device)
        return source.targets(positions[here], slots[here], factor)

    nodes = torch.arange(first, first + len(positions))
    return Targets(source.read, source.norm, positions.cpu(), build, nodes)


def _add_factors(
    nodes: list[Node], rows: list[Targets], source: Neurons, chosen: tuple[Tensor, Tensor], total: Tensor | None
) -> Split:
    """Nodes and rows of the gate pre-activations and up projections of chosen neurons, which stand right after them."""
    positions, slots = chosen
    halves = [0.0] * len(positions) if total is None else (total[positions, slots] / 2).tolist()
    starts = []
    factors: tuple[tuple[Factor, Tensor | None], ...] = (("gate", source.pre), ("up", source.up))
    for kind, values in factors:
        assert values is not None
        starts.append(len(nodes))
        rows.append(_feature_rows(source, chosen, len(nodes), kind))
        known = (positions.tolist(), slots.tolist(), values[positions, slots].tolist(), halves)
        for place, slot, value, half in zip(*known, strict=True):
            label = f"{source.label} {slot} {kind}"
            nodes.append(Node(kind, source.read.layer, place, slot, value, label, half, site=source.site))
    count = torch.arange(len(positions))
    value = source.values[positions, slots].cpu()
    return Split(len(nodes) + count, starts[0] + count, starts[1] + count, value)


def _meetings(
    machine: Machine,
    station: Station,
    chosen: Chosen,
    first: dict[int, int],
    leaves: list[tuple[int, Tensor]],
    bias: int,
) -> list[Meeting]:
    """All that stands at a cut, token by token; what is zero is left out."""
    pieces: dict[int, list[tuple[int, Tensor]]] = defaultdict(list)  # token -> (first column, vectors [vector width])
    for index in machine.cuts[station].writers:
        positions, slots = chosen[index]
        vectors = machine.sources[index].vectors(station, positions, slots)
        tokens, counts = positions.unique_consecutive(return_counts=True)
        start = 0
        for token, count in zip(tokens.tolist(), counts.tolist(), strict=True):
            pieces[token].append((first[index] + start, vectors[start : start + count]))
            start += count
    for column, vectors in leaves:
        for token in vectors.any(1).nonzero()[:, 0].tolist():
            pieces[token].append((column + token, vectors[token, None]))
    constant = machine.cuts[station].constant
    for token in constant.any(1).nonzero()[:, 0].tolist():
        pieces[token].append((bias, constant[token, None]))
    return [
        Meeting(
            token, torch.cat([vectors for _, vectors in here]).T, [(column, len(vectors)) for column, vectors in here]
        )
        for token, here in sorted(pieces.items())
    ]
