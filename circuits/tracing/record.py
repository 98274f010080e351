"""Record rows of a graph: what each target's cotangent meets on its way down.

A row is injected where its target reads (`Targets`), carried down by `sweep.descend`, and at every cut multiplied with the
vectors that stand there: out[row, column] = cotangent . vector. Rows never see later tokens nor higher layers (the
causal cone): a batch holds rows of neighbouring positions and stops at its last token, and inside it rows are sorted from
the top down, so that a row costs nothing above its own station; those that a cut of the stream ends cost nothing below it.
A batch is as large as `memory_mib` allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .frozen import Block, Norm
from .machine import Machine
from .sources import Rows
from .stations import Station
from .sweep import Branch, block_of, descend


class Meeting(NamedTuple):
    """What stands at a cut at one token, side by side: features, leaves and the constant; and which columns they fill."""

    token: int
    vectors: Float[Tensor, "width vector"]
    columns: list[tuple[int, int]]  # (first column, how many), in the order of `vectors`


class Columns(NamedTuple):
    """Where each node stands in a row; `bias` is the column of block 0, one more than there are blocks follow."""

    token: int
    position: int | None
    bias: int
    cuts: dict[Station, list[Meeting]]
    count: int


class Targets(NamedTuple):
    """Rows that are read at one station through one norm; `build(chosen)` makes some of them."""

    station: Station
    norm: Norm | None
    positions: Int[Tensor, "row"]
    build: Callable[[Int[Tensor, "chosen"]], Rows]
    nodes: Int[Tensor, "row"]

    def only(self, places: Int[Tensor, "kept"]) -> Targets:
        """Some of these rows."""
        return self._replace(
            positions=self.positions[places.to(self.positions.device)],
            nodes=self.nodes[places],
            build=lambda chosen: self.build(places[chosen.to(places.device)]),
        )


class Recorded(NamedTuple):
    """A batch of finished rows: which nodes, their values in the forward pass, their dense rows."""

    node: Int[Tensor, "row"]
    value: Float[Tensor, "row"]
    weights: Float[Tensor, "row column"]


class _Wanted(NamedTuple):
    """All rows in one numbering: the index of their Targets, their place in it, and their position."""

    group: Int[Tensor, "row"]
    place: Int[Tensor, "row"]
    position: Int[Tensor, "row"]


def record_rows(machine: Machine, columns: Columns, targets: list[Targets], memory_mib: int) -> Iterator[Recorded]:
    """Record all rows, a batch at a time."""
    groups = sorted(targets, key=lambda each: each.station, reverse=True)
    wanted = _Wanted(
        torch.cat([torch.full((len(each.nodes),), index) for index, each in enumerate(groups)]),
        torch.cat([torch.arange(len(each.nodes)) for each in groups]),
        torch.cat([each.positions.cpu() for each in groups]),
    )
    for rows in _batches(machine, columns, wanted, memory_mib):
        group, place = wanted.group[rows], wanted.place[rows]
        entering = [(groups[index], place[group == index]) for index in group.unique().tolist()]
        tokens = int(wanted.position[rows].max()) + 1
        record = Record(machine, columns, entering, len(rows), tokens)
        descend(machine, record)
        yield record.finished()


def carry(
    machine: Machine, columns: Columns, g: Float[Tensor, "row token d"], top: int, bottom: int = 0
) -> Float[Tensor, "row column"]:
    """What cotangents of the stream into block `top` meet below it, down to the stream into block `bottom`."""
    record = Record(machine, columns, [], len(g), g.shape[1])
    record.g, record.last, record.fresh = g.clone(), len(g), len(g)
    descend(machine, record, top, bottom)
    return record.finished().weights


def _batches(machine: Machine, columns: Columns, wanted: _Wanted, memory_mib: int) -> Iterator[Int[Tensor, "row"]]:
    """Cut the rows into batches of neighbouring positions that fit the budget, each sorted from the top down."""
    order = torch.argsort(wanted.position, stable=True)
    tokens = wanted.position[order].to(torch.int64) + 1
    block = machine.frozen.blocks[0]
    d, width, item = machine.frozen.embed.shape[1], block.W_O.shape[0] * block.W_O.shape[1], block.W_O.element_size()
    # A row holds its cotangent and three temporaries of an attention step, its dense row and that row's sparse form.
    per_token, per_row = (3 * d + 3 * width) * item, columns.count * (item + 16)
    start = 0
    while start < len(order):
        # Tokens grow along `order`: the largest batch that still fits is found by its last row's length.
        need = torch.arange(1, len(order) - start + 1) * (tokens[start:] * per_token + per_row)
        stop = start + max(1, int((need <= memory_mib * 2**20).sum()))
        yield order[start:stop].sort().values
        start = stop


class Record:
    """One batch on its way down (a `sweep.Visitor`)."""

    def __init__(
        self, machine: Machine, columns: Columns, entering: list[tuple[Targets, Tensor]], rows: int, tokens: int
    ):
        """`entering`: targets and which of theirs, in the order in which they are met from the top."""
        self.machine, self.columns, self.entering, self.tokens = machine, columns, entering, tokens
        embed = machine.frozen.embed
        self.g = embed.new_zeros(rows, tokens, embed.shape[1])
        self.out, self.value = embed.new_zeros(rows, columns.count), embed.new_zeros(rows)
        self.first = self.last = 0  # rows first:last are in the stream
        self.fresh = 0  # rows from here on have not passed an attention: each is zero but at its own position
        positions = [each.positions[chosen] for each, chosen in entering]
        self.positions = torch.cat(positions).to(embed.device) if positions else None

    def finished(self) -> Recorded:
        """Meet the embeddings."""
        frozen, columns, (first, g) = self.machine.frozen, self.columns, self.under_way()
        for column, vectors in ((columns.token, frozen.embed), (columns.position, frozen.pos_embed)):
            if column is not None and vectors is not None:
                met = torch.einsum("rtd,td->rt", g, vectors[: self.tokens])
                self.out[first : first + len(g), column : column + self.tokens] += met
        nodes = [each.nodes[chosen] for each, chosen in self.entering]
        return Recorded(torch.cat(nodes) if nodes else torch.empty(0, dtype=torch.int64), self.value, self.out)

    def under_way(self) -> Branch:
        """The rows in the stream."""
        return self.first, self.g[self.first : self.last]

    def add(self, branch: Branch) -> None:
        """A branch's cotangents join the stream."""
        self.g[branch[0] : branch[0] + len(branch[1])] += branch[1]
        self.fresh = self.last

    def constant(self, layer: int, vectors: Tensor, arriving: Branch) -> None:
        """Meet constants of a block."""
        first, h = arriving
        if vectors.ndim == 1:
            met = h.sum(1) @ vectors
        else:
            met = h.flatten(1) @ vectors[: self.tokens].flatten()
        self.out[first : first + len(h), self.columns.bias + layer] += met

    def attend(self, block: Block) -> None:
        """Pass an attention that is not cut."""
        fresh = max(self.first, self.fresh)
        if fresh > self.first:
            block.add_attention_adjoint_(self.g[self.first : fresh])
        if self.last > fresh and self.positions is not None:
            block.add_attention_adjoint_at_(self.g[fresh : self.last], self.positions[fresh : self.last])
        self.fresh = self.last

    def stream(self, station: Station) -> None:
        """Meet a cut of the stream, which ends all rows above it; let rows enter."""
        if station in self.columns.cuts:
            self._meet(station, self.under_way())
            self.first = self.last
        for rows, positions, target, _ in self._entering(station):
            self.g[rows, positions] += target.cotangent

    def branch(self, station: Station, arriving: Branch) -> Branch:
        """Meet a cut of a branch, which ends it for all rows above; rows that enter go on."""
        self._meet(station, arriving)
        first = self.last
        entering = self._entering(station)
        h = self.g.new_zeros(self.last - first, self.tokens, self.machine.cuts[station].constant.shape[1])
        for rows, positions, target, _ in entering:
            h[rows - first, positions] += target.cotangent
        return first, h

    def enter_normed(self, station: Station) -> None:
        """Rows that read a normed stream enter."""
        for rows, positions, target, norm in self._entering(station):
            self.g[rows, positions] += norm.adjoint_at(target.cotangent, positions) if norm else target.cotangent
            if norm and norm.bias is not None:
                self.out[rows, self.columns.bias + station.layer] += target.cotangent @ norm.bias

    def _entering(self, station: Station) -> list[tuple[Tensor, Tensor, Rows, Norm | None]]:
        found = []
        for each, chosen in self.entering:
            if each.station == station:
                rows = torch.arange(self.last, self.last + len(chosen), device=self.g.device)
                target = each.build(chosen)
                self.out[rows, self.columns.bias + block_of(self.machine, station)] += target.constant
                self.value[rows] = target.value
                self.last += len(rows)
                found.append((rows, each.positions[chosen].to(self.g.device), target, each.norm))
        return found

    def _meet(self, station: Station, arriving: Branch) -> None:
        first, h = arriving
        out = self.out[first : first + len(h)]
        for token, vectors, columns in self.columns.cuts[station] if len(h) else ():
            if token < self.tokens:
                start, met = 0, h[:, token] @ vectors
                for column, count in columns:
                    out[:, column : column + count] += met[:, start : start + count]
                    start += count
