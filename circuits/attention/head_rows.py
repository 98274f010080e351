"""Record rows split over the attention heads of one layer.

Follow a target's cotangent g down to the attention of layer L. There it splits (I5):

    row = bypass + sum_h part_h
    part_h: u = W_O^T (post-norm^T g) masked to head h, then norm^T (P_h^T u_h) W_V^T, then down as ever
    bypass: everything that does not enter the heads of L: met above them, or carried past them in the stream

Each is recorded as a row of its own, cotangent . source vector, never as a difference, so that the sum can fail. Constants go where
they arise: b_V and the norm's bias, weighted by the pattern, with the head; b_O and a post-norm's bias with the bypass. Where
a dictionary cuts a layer's attention (an SAE of its output, or of z), cotangents from above end there: all is bypass, and only
that dictionary's own latents are split.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from ..tracing.frozen import Block
from ..tracing.machine import Machine
from ..tracing.record import Columns, Record, Targets, carry
from ..tracing.sweep import descend, through


class Parts(NamedTuple):
    """Rows split at one layer: which node each row is, its parts through the heads, and what bypasses them."""

    node: Int[Tensor, "row"]
    heads: Float[Tensor, "row head column"]
    bypass: Float[Tensor, "row column"]


class _Stopped(Block):
    """A block whose attention passes nothing on; what arrives at its heads' outputs is kept, with the number of the first row."""

    record: Record
    heard: list[tuple[int, Float[Tensor, "row token width"]]]

    def mix_adjoint(self, u: Float[Tensor, "row token width"]) -> Float[Tensor, "row token d"]:
        """Keep `u`; nothing goes on."""
        self.heard.append((self.record.last - len(u), u))
        return u.new_zeros(*u.shape[:2], self.W_V.shape[1])

    def z_constant(self) -> Float[Tensor, "token width"]:
        """The heads' constants go with the heads."""
        return torch.zeros_like(super().z_constant())


class _Listening(Record):
    """A record that lets a stopped block hear its rows."""

    def attend(self, block: Block) -> None:
        """Pass an attention, or end before its heads."""
        if isinstance(block, _Stopped):
            block.mix_adjoint(block.z_adjoint(through(block.attn_post, self.under_way()[1])))
        else:
            super().attend(block)


def split_rows(
    machine: Machine, columns: Columns, targets: list[Targets], layer: int, memory_mib: int
) -> Iterator[Parts]:
    """Record rows split over the heads of one layer, a batch at a time."""
    targets = sorted(targets, key=lambda each: each.station, reverse=True)
    for entering, rows, tokens in _batches(machine, columns, targets, memory_mib):
        stopped, block = _stop(machine, layer)
        block.record, block.heard = _Listening(stopped, columns, entering, rows, tokens), []
        descend(stopped, block.record)
        done = block.record.finished()
        heads = done.weights.new_zeros(rows, len(block.W_O), columns.count)
        for first, u in block.heard:
            if len(u):
                heads[first : first + len(u)] = _through_heads(machine, columns, layer, u)
        yield Parts(done.node, heads, done.weights)


def _batches(
    machine: Machine, columns: Columns, targets: list[Targets], memory_mib: int
) -> Iterator[tuple[list[tuple[Targets, Tensor]], int, int]]:
    block, embed = machine.frozen.blocks[0], machine.frozen.embed
    per_row = (len(block.W_O) + 1) * (3 * embed.numel() + columns.count) * embed.element_size()
    most = max(1, int(memory_mib * 2**20 // per_row))
    owner = torch.cat([torch.full((len(each.nodes),), i) for i, each in enumerate(targets)])
    place = torch.cat([torch.arange(len(each.nodes)) for each in targets])
    for start in range(0, len(owner), most):
        mine, here = owner[start : start + most], place[start : start + most]
        entering = [(targets[i], here[mine == i]) for i in mine.unique().tolist()]
        tokens = max(int(each.positions[chosen.to(each.positions.device)].max()) for each, chosen in entering) + 1
        yield entering, len(mine), tokens


def _stop(machine: Machine, layer: int) -> tuple[Machine, _Stopped]:
    blocks, constants = list(machine.frozen.blocks), list(machine.attention)
    block = _Stopped(*blocks[layer])
    blocks[layer], constants[layer] = block, block.attention_constant()
    return machine._replace(frozen=machine.frozen._replace(blocks=blocks), attention=constants), block


def _through_heads(
    machine: Machine, columns: Columns, layer: int, u: Float[Tensor, "row token width"]
) -> Float[Tensor, "row head column"]:
    """Each head's share of cotangents of the heads' outputs, carried down."""
    block, t = machine.frozen.blocks[layer], u.shape[1]
    heads = len(block.W_O)
    per_head = u.unflatten(2, (heads, -1))
    v = einsum(block.pattern[:, :t, :t], per_head, "head query key, row query head e -> row head key e")
    W_V = block.W_V.repeat_interleave(heads // len(block.W_V), 0)
    g = through(block.attn_norm, einsum(v, W_V, "row head key e, head d e -> row head key d").flatten(0, 1))
    out = carry(machine, columns, g, layer).unflatten(0, (-1, heads))
    constant = block.z_constant()[:t].unflatten(1, (heads, -1))
    out[..., columns.bias + layer] += einsum(per_head, constant, "row token head e, token head e -> row head")
    return out
