"""World 2: circuits planted in random weights, and how well the tracer's edges tell them from the rest.

Neurons of layer 0 detect tokens. From there on each planted edge makes a neuron's output row contain the input row of a later
neuron, either directly (same position) or as a direction that a previous-token head turns into it (next position). All other
weights are random: every output row, encoder and the other heads' OV circuits interfere a little. A neuron fires if what arrives
exceeds its threshold, so that what is active above layer 0 is mostly active because of planted edges.

Truth: a pair of active features is an edge if it was planted and their positions fit. Score: |edge weight| in the graph.
All pairs in causal order are compared, over several prompts: AUROC and average precision. The noise sweep gives
the tracer not the neurons themselves but dictionaries whose rows carry noise (`noisy`), as trained ones do: part of each layer then
ends in error leaves. The interference sweep makes the model's own other weights larger.

Beside it, what a method would score that knows only how strongly both features fire: a_s a_t.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..experiment.statistics import auroc
from ..graph import Graph
from ..trace import trace
from .tools import Row, at_least, blank, look_at, neurons_as_part, noisy, told, wrap, write_head

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

LAYERS, NEURONS, CONTENT, TOKENS, HEADS, D_HEAD = 4, 48, 256, 12, 3, 16
DIRECT, THROUGH_HEADS = 16, 10  # planted edges per source layer, and per previous-token head
GAIN, THRESHOLD = 1.5, 0.5
Edge = tuple[int, int, int, int]  # source layer and neuron, target layer and neuron


class Planted(NamedTuple):
    """A model, and its planted edges with the distance in tokens that each one spans."""

    model: TransformerBridge
    edges: dict[Edge, int]


class Compared(NamedTuple):
    """Pairs of active features: the size of their edge, a_s a_t, and whether it was planted."""

    size: Float[Tensor, "pair"]
    together: Float[Tensor, "pair"]
    truth: Bool[Tensor, "pair"]


def plant(seed: int, interference: float = 0.2) -> Planted:
    """A model with planted circuits; `interference` is the norm of each random part beside planted ones of norm 1.5."""
    generator = torch.Generator().manual_seed(seed)

    def directions(count: int) -> Float[Tensor, "count d"]:
        rows = torch.randn(count, TOKENS + CONTENT, generator=generator, dtype=torch.float64)
        rows[:, :TOKENS] = 0  # where positions stand
        return rows / rows.norm(dim=1, keepdim=True)

    d = TOKENS + CONTENT
    model = blank(LAYERS, d, NEURONS, TOKENS, heads=HEADS, d_head=D_HEAD, d_mlp=NEURONS)
    model.pos.weight[:, :TOKENS] = torch.eye(TOKENS, dtype=torch.float64)
    detectors = directions(NEURONS)
    model.tok_embed.weight.copy_(GAIN * detectors)
    model.head.weight.copy_(directions(NEURONS))
    encoders = [detectors, *(directions(NEURONS) for _ in range(LAYERS - 1))]
    decoders = [interference * directions(NEURONS) for _ in range(LAYERS)]
    edges: dict[Edge, int] = {}

    def draw(below: int) -> int:
        return int(torch.randint(below, (1,), generator=generator))

    for layer in range(LAYERS - 1):
        for _ in range(DIRECT):
            edge = (layer, draw(NEURONS), layer + 1 + draw(LAYERS - layer - 1), draw(NEURONS))
            if edge not in edges:
                edges[edge] = 0
                decoders[layer][edge[1]] += GAIN * encoders[edge[2]][edge[3]]
    for layer in range(1, LAYERS):
        carried = directions(THROUGH_HEADS)
        into = torch.zeros(THROUGH_HEADS, d, dtype=torch.float64)
        for slot in range(THROUGH_HEADS):
            edge = (draw(layer), draw(NEURONS), layer, draw(NEURONS))
            if edge not in edges:
                edges[edge] = 1
                decoders[edge[0]][edge[1]] += GAIN * carried[slot]
                into[slot] = encoders[layer][edge[3]]
        previous = look_at([max(0, p - 1) for p in range(TOKENS)], slice(TOKENS), d)
        write_head(model, layer, 0, **previous, v=carried.T, o=into)
        for head in range(1, HEADS):
            write_head(model, layer, head, v=interference * directions(D_HEAD).T, o=directions(D_HEAD))
    for layer, (into_mlp, out) in enumerate(zip(encoders, decoders, strict=True)):
        mlp = model.layers[layer].mlp
        mlp.fc_in.weight.copy_(into_mlp)
        mlp.fc_in.bias.fill_(-THRESHOLD)
        mlp.fc_out.weight.copy_(out.T)
    return Planted(wrap(model), edges)


def compare(planted: Planted, tokens: Int[Tensor, "token"], noise: float, seed: int) -> Compared:
    """Trace one prompt with the model's own neurons as transcoders, noisy ones if `noise`, and compare all pairs of latents."""
    exact = [neurons_as_part(planted.model, layer) for layer in range(LAYERS)]
    parts = [noisy(part, noise, seed) if noise else part for part in exact]
    return pairs(trace(planted.model, tokens, parts, max_features=10**6), planted.edges)


def pairs(graph: Graph, edges: dict[Edge, int]) -> Compared:
    """All pairs of active latents that could be connected: source in a lower layer, at the same token or before."""
    features = graph.of_kind("latent")
    layer, position, index = (graph.column(name)[features] for name in ("layer", "position", "index"))
    value = graph.column("value")[features]
    weights = torch.zeros(len(graph), len(graph), dtype=torch.float64)
    weights[graph.edges.target.long(), graph.edges.source.long()] = graph.edges.weight.double()
    target, source = torch.meshgrid(torch.arange(len(features)), torch.arange(len(features)), indexing="ij")
    possible = (layer[source] < layer[target]) & (position[source] <= position[target])
    target, source = target[possible], source[possible]
    names = zip(
        layer[source].tolist(), index[source].tolist(), layer[target].tolist(), index[target].tolist(), strict=True
    )
    spans = torch.tensor([edges.get(name, -1) for name in names])
    return Compared(
        weights[features[target], features[source]].abs(),
        value[source] * value[target],
        spans == position[target] - position[source],
    )


def average_precision(scores: Float[Tensor, "item"], truth: Bool[Tensor, "item"]) -> float:
    """Mean over true items of the share of true ones among those that score at least as much."""
    ordered = truth[scores.argsort(descending=True, stable=True)].double()
    rank = torch.arange(1, len(ordered) + 1)
    return float((ordered.cumsum(0) / rank * ordered).sum() / ordered.sum())


def planted(
    seed: int = 0,
    prompts: int = 16,
    noises: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0, 2.0),
    interferences: tuple[float, ...] = (0.4, 0.8),
) -> list[Row]:
    """AUROC of the tracer's edges for planted circuits: without noise, and as the dictionaries or the model get noisier."""
    worlds = [(0.2, noise) for noise in noises] + [(size, 0.0) for size in interferences]
    rows = []
    for interference, noise in worlds:
        world = plant(seed, interference)
        generator = torch.Generator().manual_seed(seed)
        texts = [torch.randint(NEURONS, (TOKENS,), generator=generator) for _ in range(prompts)]
        size, together, truth = (
            torch.cat(each) for each in zip(*(compare(world, text, noise, seed) for text in texts), strict=True)
        )
        name = f"dictionary noise {noise:g}, interference {interference:g}"
        what = f"AUROC of |edge| over {len(truth):,} pairs, {int(truth.sum())} planted"
        clean = noise == 0 and interference == 0.2
        rows.append(at_least(name, what, auroc(size, truth), 0.99) if clean else told(name, what, auroc(size, truth)))
        rows.append(told(name, "average precision of |edge|", average_precision(size, truth)))
        if clean:
            rows.append(told(name, "AUROC of co-activation alone", auroc(together, truth)))
    return rows
