"""World 7: changes of a dictionary that mean nothing, and must change nothing else in the graph.

* split: two equal copies of a latent, each with half its decoder. Rows into each copy are the latent's; what the two give to
  others, and the influence on them, add up to the latent's.
* rescale: W_enc and b_enc times c, W_dec over c. Rows into the latent are c times as large, all else stays.
* permute: another order of latents, the same graph.

Measured on all edges and influences of a graph on a random model with noisy (imperfect) transcoders in every layer.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..graph import Graph
from ..parts import Part, Rule
from ..simplify.scores import influence, normalised, target_weights
from ..trace import trace
from .exact import EVERYTHING, LAYERS, TIGHT, random_world
from .tools import Key, Row, at_most, edges_of, key_of, neurons_as_part, noisy


def metamorphic(seed: int = 0) -> list[Row]:
    """Split, rescale and permute the latents of a middle layer's noisy transcoder; everything else must stay."""
    model, tokens = random_world(seed, norm="LN")
    given = [noisy(neurons_as_part(model, layer), 0.3, seed) for layer in range(LAYERS)]
    part, before = given[1], trace(model, tokens, given, max_features=EVERYTHING)
    latent = max(
        (n for n in before.nodes if n.kind == "latent" and n.layer == 1), key=lambda n: abs(n.attribution)
    ).index
    rows, c = [], 3.0
    order = torch.randperm(part.latents, generator=torch.Generator().manual_seed(seed))
    every = torch.arange(part.latents)
    twice = torch.cat([every, torch.tensor([latent])])
    share = torch.ones(part.latents + 1, dtype=torch.float64)
    share[[latent, -1]] = 0.5
    scale = torch.where(every == latent, c, 1.0).double()
    changes = {
        "split": (taken(part, twice, decoder=share), twice, torch.ones_like(share)),
        "rescale": (taken(part, every, encoder=scale, decoder=1 / scale), every, scale),
        "permute": (taken(part, order), order, torch.ones(part.latents)),
    }
    for name, (changed, was, factor) in changes.items():
        after = trace(model, tokens, [given[0], changed, given[2]], max_features=EVERYTHING)
        edge, reach = _difference(before, after, was, factor)
        rows.append(at_most(name, "edge against what it must become, worst", edge, TIGHT))
        rows.append(at_most(name, "influence of a node (of both copies together), worst", reach, TIGHT))
    return rows


def taken(
    part: Part,
    order: Int[Tensor, "new"],
    *,
    encoder: Float[Tensor, "new"] | None = None,
    decoder: Float[Tensor, "new"] | None = None,
) -> Part:
    """A ReLU part of these latents, in this order, with their encoders (and biases) and decoders scaled."""
    one = torch.ones(len(order), dtype=torch.float64)
    into, out = (one if encoder is None else encoder)[:, None], (one if decoder is None else decoder)[:, None]
    rows = {site: out * written[order] for site, written in part.W_dec.items()}
    return replace(
        part, W_enc=into * part.W_enc[order], b_enc=into[:, 0] * part.b_enc[order], W_dec=rows, rule=Rule("relu")
    )


def _difference(before: Graph, after: Graph, was: Tensor, factor: Tensor) -> tuple[float, float]:
    """Worst deviation of edges and of influences from what the old graph's become under the renaming `was`."""
    old_edges, old_reach = edges_of(before), _influences(before)
    new_edges: dict[tuple[Key, Key], float] = {}
    rows: dict[Key, set[Key]] = {}

    def old(key: Key) -> Key:
        return (*key[:3], int(was[key[3]])) if key[0] == "latent" and key[1] == 1 else key

    def size(key: Key) -> float:
        return float(factor[key[3]]) if key[0] == "latent" and key[1] == 1 else 1.0

    for (source, target), weight in edges_of(after).items():
        rows.setdefault(old(target), set()).add(target)
        place = old(source), target
        new_edges[place] = new_edges.get(place, 0.0) + weight / size(target)
    wanted = {(s, copy): weight for (s, t), weight in old_edges.items() for copy in rows.get(t, {t})}
    edge = max(abs(wanted.get(place, 0.0) - new_edges.get(place, 0.0)) for place in wanted.keys() | new_edges.keys())
    reach: dict[Key, float] = {}
    for key, amount in _influences(after).items():
        reach[old(key)] = reach.get(old(key), 0.0) + amount
    return edge, max(abs(old_reach.get(key, 0.0) - reach.get(key, 0.0)) for key in old_reach.keys() | reach.keys())


def _influences(graph: Graph) -> dict[Key, float]:
    arriving = influence(graph.edges, normalised(graph.edges, len(graph)), target_weights(graph))
    return {key_of(node): amount for node, amount in zip(graph.nodes, arriving.tolist(), strict=True)}
