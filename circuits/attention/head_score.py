"""A head's score at a query and a key position, and the nodes that it is to be split over.

The scene of qk.py: the machine of a prompt or of a graph, the bilinear form of the head, and a layout whose features are those of
largest direct effect on the score, or the graph's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...saes.errors import UserError
from ...saes.models import token_strings
from ..graph import Graph
from ..parts import parts
from ..trace import prompt_tokens
from ..tracing.check import check_model
from ..tracing.layout import Layout, choose, lay_out
from ..tracing.machine import Machine, build_machine
from ..tracing.record import Targets
from ..tracing.sources import Rows
from ..tracing.stations import Place, Station
from ..tracing.sweep import Seed, Totals
from .again import take_up
from .bilinear import Bilinear, bilinear

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from ..tracing.frozen import Norm


class Scene(NamedTuple):
    """A head's score at two positions, and the nodes that it is to be split over."""

    machine: Machine
    layout: Layout
    graph_nodes: tuple[int, ...]  # of each node of the layout; -1: none
    form: Bilinear
    layer: int
    query: int
    key: int

    @property
    def score(self) -> float:
        """The score before any cap, in the forward pass."""
        return float(self.form.scores()[self.query, self.key])

    @property
    def alibi(self) -> float:
        """The part of the score that depends on the key's position alone."""
        return self.form.slope * self.key

    def targets(self, positions: list[int], build: Callable[[Tensor], Rows], first: int) -> Targets:
        """Rows that read what the attention reads, numbered from `first`."""
        norm = self.machine.frozen.blocks[self.layer].attn_norm
        nodes = torch.arange(first, first + len(positions))
        return Targets(Station(self.layer, Place.ATTN_IN), norm, torch.tensor(positions), build, nodes)


def take_scene(
    model: TransformerBridge,
    prompt: str | Tensor | None,
    place: tuple[int, int, int, int],
    dictionaries: Any,
    graph: Graph | None,
    max_features: int,
) -> Scene:
    """The scene of `place` (layer, head, query, key); UserError for what is not there."""
    if (prompt is None) == (graph is None):
        raise UserError("expected a prompt or a graph of one; got both or neither; give None as the prompt of a graph")
    with torch.no_grad():
        if graph is not None:
            again = take_up(graph, model, dictionaries)
            form, (layer, query, key) = _form(model, again.machine, *place)
            return Scene(again.machine, again.layout, tuple(again.node.tolist()), form, layer, query, key)
        assert prompt is not None
        tokens = prompt_tokens(model, prompt)
        check_model(model, tokens)
        machine = build_machine(model, tokens, parts(dictionaries or []))
        form, (layer, query, key) = _form(model, machine, *place)
        totals = _Direct(machine, _seeds(machine, form, layer, query, key))
        chosen = choose(totals, machine.sources, max_features)
        layout = lay_out(machine, totals, chosen, token_strings(model, tokens))
    return Scene(machine, layout, (-1,) * len(layout.nodes), form, layer, query, key)


def _form(
    model: TransformerBridge, machine: Machine, layer: int, head: int, query: int, key: int
) -> tuple[Bilinear, tuple[int, int, int]]:
    """The head's form, and layer and positions from the start."""
    query, key = _check(machine, layer, head, query, key)
    form = bilinear(model, machine.frozen, layer, head)
    if not form.allowed[query, key]:
        raise UserError(
            f"expected a key that the query attends to; key {key} is masked for query {query} in layer {layer}; "
            "choose a key at or before the query, inside the layer's window"
        )
    return form, (layer, query, key)


def _check(machine: Machine, layer: int, head: int, query: int, key: int) -> tuple[int, int]:
    """Positions from the start; UserError for what is not there."""
    blocks, tokens = machine.frozen.blocks, len(machine.frozen.tokens)
    if not 0 <= layer < len(blocks):
        raise UserError(f"expected a layer from 0 to {len(blocks) - 1}; got {layer}; name a layer of this model")
    heads = len(blocks[layer].W_O)
    if not 0 <= head < heads:
        raise UserError(f"expected a head from 0 to {heads - 1}; got {head}; name a head of this model")
    wrong = [place for place in (query, key) if not -tokens <= place < tokens]
    if wrong:
        raise UserError(f"expected positions from {-tokens} to {tokens - 1}; got {wrong[0]}; the prompt is shorter")
    return query % tokens, key % tokens


def held(form: Bilinear, query: int, key: int, side: str) -> tuple[Float[Tensor, "d"], Float[Tensor, ""], int]:
    """The score as a functional of one side, the other held: cotangent of what the attention reads, constant, position."""
    here, other, place, fixed = (
        (form.query, form.key, query, key) if side == "query" else (form.key, form.query, key, query)
    )
    along = form.scale * other.final[fixed] @ here.map[place]
    return here.W @ along, here.b @ along, place


class _Direct(Totals):
    """Every source's direct effect on the seeds: nothing is sent on from one source to another."""

    def _entering(self, station: Station) -> list[tuple[Norm | None, Tensor]]:
        return [(seed.norm, seed.cotangent) for seed in self.seeds if seed.station == station]


def _seeds(machine: Machine, form: Bilinear, layer: int, query: int, key: int) -> list[Seed]:
    """The score through its query and through its key."""
    seeds = []
    for side in ("query", "key"):
        cotangent, constant, position = held(form, query, key, side)
        everywhere = torch.zeros_like(machine.frozen.embed)
        everywhere[position] = cotangent
        norm = machine.frozen.blocks[layer].attn_norm
        seeds.append(Seed(Station(layer, Place.ATTN_IN), norm, everywhere, float(constant)))
    return seeds
