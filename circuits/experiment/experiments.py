"""Which experiments to do: the features to ablate, the pairs to watch, and the random controls to hold against them."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..graph import Graph, Node
from .constrained import read_sites
from .edits import Catalogue, Key
from .effects import Outcome, estimates

CONTROLS, NEAREST, SUSPECTS, PATHS = 5, 5, 8, 20


def pick(graph: Graph, features: list[int], count: int, generator: torch.Generator) -> list[int]:
    """Half of `count` by largest |attribution|, the other half at random among the rest."""
    ordered = sorted(features, key=lambda i: -abs(graph.nodes[i].attribution))
    first = ordered[: (count + 1) // 2]
    others = ordered[len(first) :]
    return first + [others[i] for i in torch.randperm(len(others), generator=generator)[: count - len(first)].tolist()]


def on_paths(graph: Graph) -> list[int]:
    """The features that the strongest paths go through."""
    if not any(node.kind == "logit" for node in graph.nodes):
        return []
    return sorted({i for path in graph.paths(PATHS) for i in path.nodes if graph.nodes[i].is_feature})


def suspects(
    graph: Graph, catalogue: Catalogue, tokens: Int[Tensor, "token"], outcome: Outcome, features: list[int]
) -> list[int]:
    """The features on which attribution and the unfrozen model's gradient differ most."""
    if not features:
        return []
    nodes = [graph.nodes[i] for i in features]
    away = estimates(catalogue, tokens, outcome, nodes) + torch.tensor(
        [n.attribution for n in nodes], dtype=torch.float64
    )
    return [features[i] for i in away.abs().topk(min(SUSPECTS, len(features))).indices.tolist()]


def pairs(
    graph: Graph, picked: list[int], features: list[int], count: int, generator: torch.Generator
) -> list[tuple[int, int]]:
    """(source, target) of edges between features out of `picked`: half the heaviest, two of a source at most, half random."""
    edge = graph.edges
    is_feature = torch.zeros(len(graph), dtype=torch.bool)
    is_feature[torch.tensor(features)] = True
    is_picked = torch.zeros(len(graph), dtype=torch.bool)
    is_picked[torch.tensor(picked)] = True
    mine = (is_picked[edge.source.long()] & is_feature[edge.target.long()]).nonzero()[:, 0]
    order = mine[edge.weight[mine].abs().argsort(descending=True, stable=True)].tolist()
    used: dict[int, int] = {}
    heavy = []
    for i in order:
        source = int(edge.source[i])
        if len(heavy) < (count + 1) // 2 and used.get(source, 0) < 2:
            heavy.append(i)
            used[source] = used.get(source, 0) + 1
    others = sorted(set(order) - set(heavy))
    random = [others[i] for i in torch.randperm(len(others), generator=generator)[: count - len(heavy)].tolist()]
    return [(int(edge.source[i]), int(edge.target[i])) for i in heavy + random]


def controls(
    catalogue: Catalogue, tokens: Int[Tensor, "token"], chosen: list[Node], generator: torch.Generator
) -> list[list[Node]]:
    """Random sets like `chosen`: same layers, positions and about the same activations; empty when nothing can be matched."""
    keys = [catalogue.key(node) for node in chosen]
    seen = read_sites(catalogue.model, tokens, [key.site for key in keys]) if keys else {}
    active = {
        (key, node.position): _active(catalogue, key, seen[key.site].flatten(1)[node.position])
        for key, node in zip(keys, chosen, strict=True)
    }
    found = []
    for _ in range(CONTROLS):
        taken, control = {(key, node.position, node.index) for key, node in zip(keys, chosen, strict=True)}, []
        for key, node in zip(keys, chosen, strict=True):
            values, indices = active[key, node.position]
            free = [i for i, index in enumerate(indices) if (key, node.position, index) not in taken]
            near = sorted(free, key=lambda i: abs(abs(values[i]) - abs(node.value)))[:NEAREST]
            if near:
                i = near[int(torch.randint(len(near), (1,), generator=generator))]
                label = f"L{node.layer} {node.kind} {indices[i]}"
                control.append(Node(node.kind, node.layer, node.position, indices[i], values[i], label, site=node.site))
                taken.add((key, node.position, indices[i]))
        found.append(control)
    return [control for control in found if control]


def _active(catalogue: Catalogue, key: Key, x: Float[Tensor, "width"]) -> tuple[list[float], list[int]]:
    """Activations and indices of the features that are active at one place."""
    if key.kind == "neuron":
        values, indices = x, torch.arange(len(x), device=x.device)
    else:
        part = catalogue.parts[key.site]
        values, indices = (column[0] for column in part.encode(x[None].to(part.W_enc.dtype)))
    return values[values != 0].tolist(), indices[values != 0].tolist()
