"""Stations: where a cotangent meets something on its way down, in the order of the forward pass.

    STREAM       the residual stream into a block: hook_resid_pre, and hook_resid_post of the block below
    PARALLEL_IN  what the MLP of a parallel block reads (its norm of the stream)
    ATTN_IN      what the attention reads
    Z            the heads' outputs, side by side (attn.hook_z)
    ATTN_OUT     the attention's output, before a post-norm
    ATTN_ADDED   what it adds to the stream, after a post-norm
    MIDDLE       the stream between attention and MLP (hook_resid_mid; absent in parallel blocks)
    MLP_IN       what the MLP reads
    MLP          the MLP's output as neurons or transcoders make it
    MLP_OUT      the same tensor, taken apart by an SAE
    MLP_ADDED    what it adds to the stream, after a post-norm
    LOGITS       the final norm's output

A source is read at one station and written at one or more later ones (an SAE: at its own). An edge needs a source that is
written before its target is read, so sorting nodes by the station they are read at is a causal order.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from ...saes.errors import UserError
from ...saes.sites import resolve_site

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from .frozen import Block


class Place(IntEnum):
    """A station's place inside a block."""

    STREAM = 0
    PARALLEL_IN = 1
    ATTN_IN = 2
    Z = 3
    ATTN_OUT = 4
    ATTN_ADDED = 5
    MIDDLE = 6
    MLP_IN = 7
    MLP = 8
    MLP_OUT = 9
    MLP_ADDED = 10
    LOGITS = 11


class Station(NamedTuple):
    """A block and a place in it; tuples compare in the order of the forward pass."""

    layer: int
    place: Place


TRANSCODED = (Place.MLP, Place.MLP_ADDED)
NORMED = (Place.PARALLEL_IN, Place.ATTN_IN, Place.MLP_IN)
READS = {
    "hook_resid_pre": Place.STREAM,
    "hook_resid_mid": Place.MIDDLE,
    "ln2.hook_in": Place.MIDDLE,
    "mlp.hook_in": Place.MLP_IN,
    "ln2.hook_out": Place.MLP_IN,
    "ln2.hook_normalized": Place.MLP_IN,
}
WRITES = {
    "attn.hook_z": Place.Z,
    "attn.o.hook_in": Place.Z,
    "attn.hook_out": Place.ATTN_OUT,
    "attn.o.hook_out": Place.ATTN_OUT,
    "ln1_post.hook_out": Place.ATTN_ADDED,
    "mlp.hook_out": Place.MLP,
    "mlp.out.hook_out": Place.MLP,
    "ln2_post.hook_out": Place.MLP_ADDED,
}


def locate(model: TransformerBridge, blocks: list[Block], site: str) -> tuple[str, Station]:
    """The canonical spelling of a site and its station (an MLP's output: MLP); UserError where nothing can be traced."""
    name = resolve_site(model, site)
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    layer, suffix = (int(match.group(1)), match.group(2)) if match else (-1, name)
    if suffix == "hook_resid_post":
        return name, Station(layer + 1, Place.STREAM)
    place = {**READS, **WRITES}.get(suffix)
    if place is None or layer < 0:
        raise UserError(
            f"expected a site that can be traced (hook_resid_pre/mid/post, mlp.hook_in, mlp.hook_out, attn.hook_out, attn.hook_z, …); "
            f"got {site}; leave this dictionary out"
        )
    if blocks[layer].is_parallel:
        place = {Place.MLP_IN: Place.PARALLEL_IN, Place.MIDDLE: Place.STREAM}.get(place, place)
    return name, Station(layer, place)
