"""Take a traced prompt up again: the graph's model frozen once more, and its nodes as columns of recorded rows.

A graph keeps what it was traced from (tokens, the fingerprints of model and dictionaries, targets, rule for gated neurons),
so the machine can be rebuilt, and further rows be recorded onto the same nodes. Where the graph is only a part (pruned, or
bounded by `max_edges`), columns without a node of their own stay: what they hold belongs to the graph's rest leaves.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from ...saes.errors import UserError
from ..graph import Graph, Node
from ..origin import same_origin
from ..parts import parts
from ..targets import Direction, FeatureAt, Target
from ..trace import prompt_tokens
from ..tracing.layout import Chosen, Layout, lay_out, split_places
from ..tracing.machine import Machine, build_machine
from ..tracing.record import Targets
from ..tracing.sources import Latents, Source
from ..tracing.sweep import Totals
from ..tracing.wanted import direction_sites, seeds

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class Again(NamedTuple):
    """A rebuilt machine, its layout, the graph's node of every column (-1: none), and the rows of the graph's nodes.

    `rows` have graph nodes as their `nodes`; a neuron whose factors are traced apart (`neurons="rows"`) has none.
    """

    machine: Machine
    layout: Layout
    node: Int[Tensor, "column"]
    rows: list[Targets]


def take_up(graph: Graph, model: TransformerBridge, dictionaries: Any = None) -> Again:
    """Rebuild what `graph` was traced with; UserError when the model or a dictionary is another one."""
    given = same_origin(graph, model, parts(dictionaries or []))
    if not {"neurons", "centred"} <= graph.metadata["settings"].keys():
        raise UserError(
            "expected an attribution graph; got a patching baseline, whose edges are no cotangents; trace the prompt"
        )
    settings, wanted = graph.metadata["settings"], [_target(data) for data in graph.metadata["targets"]]
    tokens = prompt_tokens(model, torch.tensor(graph.metadata["tokens"]))
    with torch.no_grad():
        sites = direction_sites(model, [target.wish for target in wanted])
        machine = build_machine(model, tokens, given, settings["neurons"], sites)
        layout = lay_out(machine, Totals(machine, []), _chosen(graph, machine), graph.metadata["token_strings"])
        node = _nodes(graph, layout)
        rows = [each._replace(nodes=node[each.nodes]) for each in layout.rows]
        places = torch.tensor(_target_nodes(graph, wanted))
        rows += [
            each._replace(nodes=places[each.nodes]) for _, each in seeds(model, machine, wanted, settings["centred"])
        ]
    return Again(machine, layout, node, rows)


def _target(data: dict[str, Any]) -> Target:
    """A target as the graph's metadata keep it."""
    wish = None
    if "feature" in data:
        wish = FeatureAt(*data["feature"])
    if "direction" in data:
        vector = torch.tensor(data["direction"]["vector"], dtype=torch.float64)
        wish = Direction(**data["direction"] | {"vector": vector})
    return Target(tuple(data["ids"]), data["label"], data["weight"], data["probability"], wish)


def _target_nodes(graph: Graph, wanted: list[Target]) -> list[int]:
    """The graph's node of each target; -1 where pruning took it."""
    left = {place: node for place, node in enumerate(graph.nodes) if node.kind in ("logit", "direction")}
    found = []
    for target in wanted:
        kind = "logit" if target.wish is None else "direction"
        mine = (place for place, node in left.items() if (node.kind, node.label) == (kind, target.label))
        found.append(next(mine, -1))
        left.pop(found[-1], None)
    return found


def _chosen(graph: Graph, machine: Machine) -> Chosen:
    """The graph's features as places of the machine's sources."""
    features = [node for node in graph.nodes if node.is_feature]
    owners = [_owners(machine.sources, node) for node in features]
    known = [
        _places(source, [node for node, mine in zip(features, owners, strict=True) if i in mine])
        for i, source in enumerate(machine.sources)
    ]
    owner, place = [], []
    for node, mine in zip(features, owners, strict=True):
        key = (node.position, node.index)
        source = next((i for i in mine if key in known[i]), None)
        if source is None:
            raise UserError(
                f"expected {node.label} to be active at position {node.position} as it was when traced; it is not; "
                "is the graph of another version of the model or dictionary?"
            )
        owner.append(source)
        place.append(known[source].pop(key))
    columns = (torch.tensor(column, dtype=torch.int64) for column in (owner, place))
    return split_places(machine.sources, *columns)


def _places(source: Source, nodes: list[Node]) -> dict[tuple[int, int], int]:
    """(position, index) of those of the nodes that are active in a source -> flat place."""
    keys = sorted({(node.position, node.index) for node in nodes})
    if not keys:
        return {}
    position, index = torch.tensor(keys, device=source.values.device).unbind(1)
    slot = index
    if isinstance(source, Latents):
        slot = ((source.indices[position] == index[:, None]) & (source.values[position] != 0)).int().argmax(1)
    here = (source.latent(position, slot) == index) & (source.values[position, slot] != 0)
    flat = (position * source.values.shape[1] + slot).tolist()
    return {key: place for key, place, is_here in zip(keys, flat, here.tolist(), strict=True) if is_here}


def _owners(sources: list[Source], node: Node) -> list[int]:
    """The sources that a feature node may belong to; graphs of before sites were kept name only the layer."""
    return [
        i
        for i, source in enumerate(sources)
        if source.kind == node.kind and (source.site == node.site if node.site else source.read.layer == node.layer)
    ]


def _nodes(graph: Graph, layout: Layout) -> Int[Tensor, "column"]:
    """The graph's node of every column; -1 where it has none."""
    has_sites = any(node.site for node in graph.nodes if node.kind != "token")
    places: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for place, node in enumerate(graph.nodes):
        places[_key(node, has_sites)].append(place)
    found = [places[_key(node, has_sites)] for node in layout.nodes]
    return torch.tensor([mine.pop(0) if mine else -1 for mine in found])


def _key(node: Node, has_sites: bool) -> tuple[Any, ...]:
    return (node.kind, node.layer, node.position, node.index, node.site if has_sites else "")
