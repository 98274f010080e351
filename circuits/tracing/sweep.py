"""Adjoint sweeps: cotangents carried down a frozen pass, without autograd.

`descend` walks the blocks from the top and tells a `Rows`-like visitor, at each station, what arrives there. Two
visitors share the walk:

* `Totals` carries one cotangent, the weighted targets', and sends what arrives at each source on to what the source reads
  (`pull`), so that one pass gives every source's signed total attribution through all paths.
* `record.Record` carries many cotangents at once, one per row of the graph, and sends nothing on: a row holds direct
  effects only.

At a cut (machine.py) the rows from above meet the sum that stands there and go no further; rows that are read there enter.
Elsewhere they pass. One block, top down:

    MLP_ADDED → post-norm → MLP_OUT → MLP, whose skip paths lead back to the stream; rows that read the MLP's input enter
    MIDDLE
    ATTN_ADDED → post-norm → ATTN_OUT → W_O → Z → patterns, W_V → ATTN_IN → norm
    STREAM

A parallel block's branches both read its STREAM, so its MLP's readers enter after the attention.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from .frozen import Block, Norm
from .machine import Machine
from .sources import Latents
from .stations import Place, Station

# Rows on their way through a branch [row token width], and the number of the first.
Branch = tuple[int, Float[Tensor, "_ token _"]]


@runtime_checkable
class Visitor(Protocol):
    """Who carries cotangents down; row numbers count from the first row that entered."""

    def under_way(self) -> Branch:
        """The rows in the stream."""
        ...

    def add(self, branch: Branch) -> None:
        """A branch's cotangents join the stream."""
        ...

    def attend(self, block: Block) -> None:
        """All rows in the stream pass an attention that is not cut."""
        ...

    def stream(self, station: Station) -> None:
        """A place in the stream: meet what stands there if it is cut, let rows enter."""
        ...

    def branch(self, station: Station, arriving: Branch) -> Branch:
        """A place in a branch: the same; returns the rows that go on."""
        ...

    def enter_normed(self, station: Station) -> None:
        """Rows that read a normed copy of the stream enter."""
        ...

    def constant(
        self, layer: int, vectors: Float[Tensor, "token width"] | Float[Tensor, "width"], arriving: Branch
    ) -> None:
        """Meet constants of a block."""
        ...


def descend(machine: Machine, visitor: Visitor, top: int | None = None, bottom: int = 0) -> None:
    """Carry the visitor's rows from the logits (or into block `top`) down to the stream into block `bottom`."""
    blocks = machine.frozen.blocks
    if top is None:
        visitor.enter_normed(Station(len(blocks), Place.LOGITS))
    visitor.stream(Station(len(blocks) if top is None else top, Place.STREAM))
    for layer in reversed(range(bottom, len(blocks) if top is None else top)):
        block = blocks[layer]
        below = _mlp(machine, layer, visitor) if block.mlp is not None else []
        if not block.is_parallel:
            for branch in below:
                visitor.add(branch)
            visitor.enter_normed(Station(layer, Place.MLP_IN))
            visitor.stream(Station(layer, Place.MIDDLE))
        _attention(machine, layer, visitor)
        if block.is_parallel:
            for branch in below:
                visitor.add(branch)
            visitor.enter_normed(Station(layer, Place.PARALLEL_IN))
        visitor.stream(Station(layer, Place.STREAM))


def _mlp(machine: Machine, layer: int, visitor: Visitor) -> list[Branch]:
    """Through the MLP's branch; what its skip paths give back to the stream."""
    block, below = machine.frozen.blocks[layer], []
    arriving = visitor.under_way()
    for place in (Place.MLP_ADDED, Place.MLP_OUT, Place.MLP):
        station = Station(layer, place)
        if place is Place.MLP_OUT and block.mlp_post is not None and len(arriving[1]):
            if block.mlp_post.bias is not None:
                visitor.constant(layer, block.mlp_post.bias, arriving)
            arriving = arriving[0], block.mlp_post.adjoint(arriving[1])
        if station in machine.cuts:
            below += skips(machine, station, arriving)
            arriving = visitor.branch(station, arriving)
    return below


def skips(machine: Machine, station: Station, arriving: Branch) -> list[Branch]:
    """Cotangents in the stream of the linear paths that end at a cut."""
    found = []
    for index in machine.cuts[station].writers:
        source = machine.sources[index]
        if isinstance(source, Latents) and source.skip_station == station and len(arriving[1]):
            found.append((arriving[0], through(source.norm, source.skip_adjoint(arriving[1]))))
    return found


def through(norm: Norm | None, cotangent: Float[Tensor, "row token d"]) -> Float[Tensor, "row token d"]:
    """A norm's adjoint where there is a norm."""
    return norm.adjoint(cotangent) if norm else cotangent


def _attention(machine: Machine, layer: int, visitor: Visitor) -> None:
    block, arriving = machine.frozen.blocks[layer], visitor.under_way()
    if not machine.is_cut(layer, Place.ATTN_ADDED, Place.ATTN_OUT, Place.Z):
        if len(arriving[1]):
            visitor.constant(layer, machine.attention[layer], arriving)
            visitor.attend(block)
    else:
        arriving = _staged_attention(machine, layer, visitor, arriving)
        if len(arriving[1]):
            visitor.add((arriving[0], through(block.attn_norm, arriving[1])))
    visitor.enter_normed(Station(layer, Place.ATTN_IN))


def _staged_attention(machine: Machine, layer: int, visitor: Visitor, arriving: Branch) -> Branch:
    """Stage by stage, since rows may end or enter at each: down to the cotangent of what the attention reads."""
    block = machine.frozen.blocks[layer]
    stages = (
        (Place.ATTN_ADDED, block.attn_post.bias if block.attn_post else None, lambda g: through(block.attn_post, g)),
        (Place.ATTN_OUT, block.b_O, block.z_adjoint),
        (Place.Z, block.z_constant(), block.mix_adjoint),
    )
    for place, constant, adjoint in stages:
        if Station(layer, place) in machine.cuts:
            arriving = visitor.branch(Station(layer, place), arriving)
        if len(arriving[1]):
            if constant is not None:
                visitor.constant(layer, constant, arriving)
            arriving = arriving[0], adjoint(arriving[1])
    return arriving


class Seed(NamedTuple):
    """A weighted target: what it reads, through which norm, its cotangent there, and its constant."""

    station: Station
    norm: Norm | None
    cotangent: Float[Tensor, "token width"]
    constant: float


def block_of(machine: Machine, station: Station) -> int:
    """The block in whose bias a constant is counted; the logits' have a place of their own."""
    return station.layer if station.place is Place.LOGITS else min(station.layer, len(machine.frozen.blocks) - 1)


class Totals:
    """Signed total attribution of everything that can be a node, for one weighted target."""

    def __init__(self, machine: Machine, seeds: list[Seed]):
        """`seeds`: the weighted targets."""
        frozen = machine.frozen
        self.machine, self.seeds = machine, seeds
        self.g = torch.zeros_like(frozen.embed)[None]
        self.sources: list[Tensor | None] = [None] * len(machine.sources)
        self.first: dict[Station, float] = {}
        self.error: dict[Station, Float[Tensor, "token"]] = {}
        self.bias = [0.0] * (len(frozen.blocks) + 1)
        descend(machine, self)
        self.token = (self.g[0] * frozen.embed).sum(1)
        self.position = None if frozen.pos_embed is None else (self.g[0] * frozen.pos_embed).sum(1)

    def under_way(self) -> Branch:
        """The one row."""
        return 0, self.g

    def add(self, branch: Branch) -> None:
        """A branch's cotangent joins the stream."""
        self.g = self.g + branch[1]

    def constant(self, layer: int, vectors: Tensor, arriving: Branch) -> None:
        """Meet constants of a block."""
        self.bias[layer] += float((arriving[1] * vectors).sum())

    def attend(self, block: Block) -> None:
        """Pass an attention that is not cut."""
        block.add_attention_adjoint_(self.g)

    def stream(self, station: Station) -> None:
        """Meet a cut of the stream, send on what arrived at its sources."""
        self.g = self.branch(station, (0, self.g))[1]

    def branch(self, station: Station, arriving: Branch) -> Branch:
        """Meet a cut, send on what arrived at the sources that are read here."""
        h = arriving[1]
        if station in self.machine.cuts:
            self._meet(station, h[0])
            h = torch.zeros_like(h)
        for _, cotangent in self._entering(station):
            h = h + cotangent
        return 0, h

    def enter_normed(self, station: Station) -> None:
        """Send on what arrived at the sources that read a normed stream here."""
        for norm, cotangent in self._entering(station):
            if norm is not None and norm.bias is not None:
                self.bias[block_of(self.machine, station)] += float((cotangent @ norm.bias).sum())
            self.g = self.g + through(norm, cotangent[None])

    def _entering(self, station: Station) -> list[tuple[Norm | None, Float[Tensor, "token width"]]]:
        found = []
        for seed in self.seeds:
            if seed.station == station:
                self.bias[block_of(self.machine, station)] += seed.constant
                found.append((seed.norm, seed.cotangent))
        for index in self.machine.readers(station):
            found.append((self.machine.sources[index].norm, self._pulled(index, station)))
        return found

    def _meet(self, station: Station, h: Float[Tensor, "token width"]) -> None:
        cut = self.machine.cuts[station]
        self.bias[block_of(self.machine, station)] += float((h * cut.constant).sum())
        self.first[station] = float(h[0] @ cut.first)
        if cut.error is not None:
            self.error[station] = (h * cut.error).sum(1)
        for index in cut.writers:
            arriving = self.machine.sources[index].attribution(station, h)
            before = self.sources[index]
            self.sources[index] = arriving if before is None else before + arriving

    def _pulled(self, index: int, station: Station) -> Float[Tensor, "token width"]:
        total, source = self.sources[index], self.machine.sources[index]
        if total is None:
            total = torch.zeros_like(source.values)
            self.sources[index] = total
        cotangent, constant = source.pull(total)
        self.bias[block_of(self.machine, station)] += float(constant)
        return cotangent
