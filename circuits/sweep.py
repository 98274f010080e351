"""Adjoint sweeps: cotangents carried down a frozen pass, without autograd.

Two sweeps over the same maps (frozen.py), top to bottom, and at each block in this order:

    record   g at mlp.hook_out meets the layer's sources and leaves: weight = g . vector
    skip     g += N2^T W_skip^T g                     (transcoders with a linear path)
    inject   the cotangents of this layer's targets join at their positions (in a parallel block after the attention step)
    attend   g += A^T g; on the way g meets the attention's constants

`total_attribution` carries one cotangent, the weighted targets', and sends what arrives at each source on to what the source
reads (`pull`), so that one pass gives every source's signed total attribution through all paths. `record_rows` carries
many cotangents at once, one per row of the graph, and sends nothing on: a row holds direct effects only. It is restricted
to the causal cone: rows are batched by position, so that a batch stops at its last token, and sorted by layer inside, so that a
row costs nothing above its own layer. A batch is as large as `memory_mib` allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .frozen import FrozenPass
from .sources import Rows, Source


class Machine(NamedTuple):
    """A frozen pass with the sources of every layer (None where a block has no MLP) and the constants of its attention."""

    frozen: FrozenPass
    sources: list[Source | None]
    constants: list[Float[Tensor, "token d"]]

    def source(self, layer: int) -> Source:
        """The source of a layer that has one."""
        source = self.sources[layer]
        assert source is not None
        return source


class Totals(NamedTuple):
    """Signed total attribution of everything that can be a node; per layer where it is a list."""

    sources: list[Float[Tensor, "token slot"] | None]
    first: list[float]
    error: list[Float[Tensor, "token"] | None]
    bias: list[float]  # one more than layers: the last is the final norm's and b_U's
    token: Float[Tensor, "token"]
    position: Float[Tensor, "token"] | None


class Columns(NamedTuple):
    """Where each node stands in a row, by its first column (one per token from there on where a leaf has positions)."""

    token: int
    position: int | None
    bias: int  # one per layer, and one for the final norm and b_U
    first: dict[int, int]  # layer -> column
    error: dict[int, int]
    rest: dict[int, int]
    rest_vectors: dict[int, Tensor]  # layer -> [token d]
    features: list[list[tuple[int, int, Tensor]]]  # per layer: (token, first column, vectors [d feature])
    count: int


class Wanted(NamedTuple):
    """Rows to record: the layer (n_layers for logits), position and slot of each, and which node it is."""

    layer: Int[Tensor, "row"]
    position: Int[Tensor, "row"]
    slot: Int[Tensor, "row"]
    node: Int[Tensor, "row"]


class Recorded(NamedTuple):
    """A batch of finished rows."""

    node: Int[Tensor, "row"]
    value: Float[Tensor, "row"]
    weights: Float[Tensor, "row column"]


def build_machine(frozen: FrozenPass, sources: list[Source | None]) -> Machine:
    """Gather what both sweeps need."""
    return Machine(frozen, sources, [block.attention_constant() for block in frozen.blocks])


def total_attribution(machine: Machine, logits: Rows, weights: Float[Tensor, "target"]) -> Totals:
    """One sweep for sum_i weights_i target_i; the leaves' totals (all but `sources`) sum to that target's value."""
    frozen = machine.frozen
    layers = len(frozen.blocks)
    cotangent = weights @ logits.cotangent
    g = torch.zeros_like(frozen.embed)
    g[-1] = cotangent
    g = frozen.final.adjoint(g)
    bias = [0.0] * layers + [float(weights @ logits.constant)]
    if frozen.final.bias is not None:
        bias[-1] += float(cotangent @ frozen.final.bias)
    totals: list[Tensor | None] = [None] * layers
    first: list[float] = [0.0] * layers
    error: list[Tensor | None] = [None] * layers
    for layer in reversed(range(layers)):
        block, source = frozen.blocks[layer], machine.sources[layer]
        below = torch.zeros_like(g)
        if source is not None:
            at_out = block.mlp_post.adjoint(g) if block.mlp_post else g
            bias[layer] += float((at_out * source.leaves.constant).sum())
            if block.mlp_post and block.mlp_post.bias is not None:
                bias[layer] += float((g @ block.mlp_post.bias).sum())
            first[layer] = float((at_out * source.leaves.first).sum())
            error[layer] = None if source.leaves.error is None else (at_out * source.leaves.error).sum(1)
            arriving = source.attribution(at_out)
            totals[layer] = arriving
            pulled, constant = source.pull(arriving)
            bias[layer] += float(constant)
            if block.mlp_norm and block.mlp_norm.bias is not None:
                bias[layer] += float((pulled @ block.mlp_norm.bias).sum())
            skipped = source.skip_adjoint(at_out)
            pulled = pulled if skipped is None else pulled + skipped
            below = block.mlp_norm.adjoint(pulled) if block.mlp_norm else pulled
        if not block.is_parallel:
            g = g + below
        bias[layer] += float((g * machine.constants[layer]).sum())
        g = g + block.attention_adjoint(g[None])[0] + (below if block.is_parallel else 0)
    position = None if frozen.pos_embed is None else (g * frozen.pos_embed).sum(1)
    return Totals(totals, first, error, bias, (g * frozen.embed).sum(1), position)


def record_rows(
    machine: Machine, columns: Columns, logits: Rows, wanted: Wanted, memory_mib: int
) -> Iterator[Recorded]:
    """Record all `wanted` rows, a batch at a time."""
    for part in batches(machine, columns, wanted, memory_mib):
        yield _record(machine, columns, logits, Wanted(*(field[part] for field in wanted)))


def batches(machine: Machine, columns: Columns, wanted: Wanted, memory_mib: int) -> Iterator[Int[Tensor, "row"]]:
    """Cut the rows into batches of neighbouring positions that fit the budget, each sorted from the top layer down."""
    by_position = torch.argsort(wanted.position, stable=True)
    block = machine.frozen.blocks[0]
    d, width = machine.frozen.embed.shape[1], block.W_O.shape[0] * block.W_O.shape[1]
    item = machine.frozen.embed.element_size()
    start = 0
    while start < len(by_position):
        stop, rows = start, 0
        while stop < len(by_position):
            tokens = int(wanted.position[by_position[stop]]) + 1
            # A row holds its cotangent and three temporaries of an attention step, its dense row and that row's sparse form.
            need = (rows + 1) * (tokens * (3 * d + 3 * width) * item + columns.count * (item + 16))
            if rows and need > memory_mib * 2**20:
                break
            stop, rows = stop + 1, rows + 1
        part = by_position[start:stop]
        yield part[torch.argsort(wanted.layer[part], descending=True, stable=True)]
        start = stop


def _record(machine: Machine, columns: Columns, logits: Rows, wanted: Wanted) -> Recorded:
    frozen = machine.frozen
    tokens = int(wanted.position.max()) + 1
    g = frozen.embed.new_zeros(len(wanted.node), tokens, frozen.embed.shape[1])
    out = frozen.embed.new_zeros(len(wanted.node), columns.count)
    value = frozen.embed.new_zeros(len(wanted.node))
    active = _inject(machine, columns, logits, wanted, len(frozen.blocks), g, out, value)
    for layer in reversed(range(len(frozen.blocks))):
        block = frozen.blocks[layer]
        here = g[:active]
        below = (
            _record_mlp(machine, columns, layer, here, out) if active and machine.sources[layer] is not None else None
        )
        if block.is_parallel:
            _attend(machine, columns, layer, here, out, below)
            active = _inject(machine, columns, logits, wanted, layer, g, out, value)
        else:
            here += 0 if below is None else below
            active = _inject(machine, columns, logits, wanted, layer, g, out, value)
            _attend(machine, columns, layer, g[:active], out, None)
    out[:, columns.token : columns.token + tokens] = torch.einsum("btd,td->bt", g, frozen.embed[:tokens])
    if columns.position is not None and frozen.pos_embed is not None:
        out[:, columns.position : columns.position + tokens] = torch.einsum("btd,td->bt", g, frozen.pos_embed[:tokens])
    return Recorded(wanted.node, value, out)


def _attend(
    machine: Machine,
    columns: Columns,
    layer: int,
    g: Float[Tensor, "active token d"],
    out: Float[Tensor, "row column"],
    below: Float[Tensor, "active token d"] | None,
) -> None:
    """Meet the attention's constants, then carry `g` (in place) to the block's input; `below` joins it there."""
    if len(g):
        constants = machine.constants[layer][: g.shape[1]]
        out[: len(g), columns.bias + layer] += torch.einsum("btd,td->b", g, constants)
        g += machine.frozen.blocks[layer].attention_adjoint(g)
        g += 0 if below is None else below


def _inject(
    machine: Machine,
    columns: Columns,
    logits: Rows,
    wanted: Wanted,
    layer: int,
    g: Float[Tensor, "row token d"],
    out: Float[Tensor, "row column"],
    value: Float[Tensor, "row"],
) -> int:
    """Let this layer's targets join the sweep; returns how many rows are under way now."""
    frozen = machine.frozen
    rows = (wanted.layer == layer).nonzero()[:, 0].to(g.device)
    if not len(rows):
        return int((wanted.layer >= layer).sum())
    position, slot = wanted.position[rows].to(g.device), wanted.slot[rows].to(g.device)
    if layer == len(frozen.blocks):
        target, norm = Rows(*(field[slot] for field in logits)), frozen.final
    else:
        source = machine.source(layer)
        target, norm = source.rows(position, slot), frozen.blocks[layer].mlp_norm
    g[rows, position] += norm.adjoint_at(target.cotangent, position) if norm else target.cotangent
    out[rows, columns.bias + layer] += target.constant
    if norm and norm.bias is not None:
        out[rows, columns.bias + layer] += target.cotangent @ norm.bias
    value[rows] = target.value
    return int((wanted.layer >= layer).sum())


def _record_mlp(
    machine: Machine, columns: Columns, layer: int, g: Float[Tensor, "active token d"], out: Float[Tensor, "row column"]
) -> Float[Tensor, "active token d"] | None:
    """Meet what the layer's MLP wrote; returns what its skip path adds to the cotangent, if it has one."""
    block, source = machine.frozen.blocks[layer], machine.source(layer)
    rows, tokens = g.shape[:2]
    at_out = block.mlp_post.adjoint(g) if block.mlp_post else g
    for token, column, vectors in columns.features[layer]:
        if token < tokens:
            out[:rows, column : column + vectors.shape[1]] = at_out[:, token] @ vectors
    error, rest = source.leaves.error, columns.rest_vectors.get(layer)
    for column, vectors in ((columns.error.get(layer), error), (columns.rest.get(layer), rest)):
        if column is not None and vectors is not None:
            out[:rows, column : column + tokens] = torch.einsum("btd,td->bt", at_out, vectors[:tokens])
    out[:rows, columns.first[layer]] = at_out[:, 0] @ source.leaves.first[0]
    out[:rows, columns.bias + layer] += torch.einsum("btd,td->b", at_out, source.leaves.constant[:tokens])
    if block.mlp_post and block.mlp_post.bias is not None:
        out[:rows, columns.bias + layer] += (g @ block.mlp_post.bias).sum(1)
    skipped = source.skip_adjoint(at_out)
    return block.mlp_norm.adjoint(skipped) if skipped is not None and block.mlp_norm else skipped
