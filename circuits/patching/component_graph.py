"""From scores of edges between components to a Graph.

A head is up to four nodes. Its inputs "L3H1.q", "L3H1.k", "L3H1.v" (of the key-value head, which a group of heads shares) receive
edges from earlier writers; "L3H1" is its output. Fixed edges lead from the inputs to the outputs that use them. So one edge
stands for one thing, which channel a writer acts through stays visible, and paths and influence run through heads. An MLP is
one node. With positions, there is a node for each position: writers act on readers at their own position, and the edge
from a key or value at one position to a head's output at another is how attention moves things.

The rows of such a graph are no ledger (`row_values` is NaN): scores of edges into a node need not sum to anything.
`attribution` of a node is the sum of the edges that leave it, for a component the score of replacing its whole output.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...saes.models import model_info, token_strings
from ..graph import Edges, Graph, Node
from .components import CHANNELS, Component, Wiring
from .pairs import Pair


class Weights(NamedTuple):
    """Scores of edges; `position` (key, query) has length 1 or that of the prompt."""

    outer: Float[Tensor, "receiver sender position"]  # from a writer into a reader
    inner: list[dict[str, Float[Tensor, "head key query"]]]  # per layer and channel: inside a head


class _Table(NamedTuple):
    target: Int[Tensor, "edge"]
    source: Int[Tensor, "edge"]
    weight: Float[Tensor, "edge"]


def component_graph(
    wiring: Wiring,
    weights: Weights,
    is_edge: Bool[Tensor, "receiver sender position"],
    pairs: list[Pair],
    logit: Node,
    norms: Float[Tensor, "position"],
    metadata: dict[str, Any],
) -> Graph:
    """The Graph of the edges in `is_edge` and the fixed ones inside heads; nodes without any edge are left out.

    `logit`: the node of what is measured; `norms`: of the embeddings, for the token nodes.
    """
    positions, is_edge = is_edge.shape[-1], is_edge.cpu()
    weights = Weights(weights.outer.cpu(), [{name: w.cpu() for name, w in inner.items()} for inner in weights.inner])
    nodes, writers, readers = _nodes(wiring, pairs[0], positions, logit, norms)
    parts = [_outer(weights.outer, is_edge, writers, readers)]
    has_input = {(r.kind, r.layer, r.index): is_edge[i].any(0) for i, r in enumerate(wiring.receivers)}
    for block, inner in zip(wiring.blocks, weights.inner, strict=True):
        columns = wiring.columns(block.layer, "head")
        used = is_edge[:, columns].any(0)
        for channel in CHANNELS:
            rows = wiring.rows(block.layer, channel)
            group = block.heads // (rows.stop - rows.start)
            for head in range(block.heads):
                mine = has_input[channel, block.layer, head // group][:, None] & used[head][None, :]
                mine = mine & (inner[channel][head] != 0)
                key, query = mine.nonzero(as_tuple=True)
                source, target = readers[rows.start + head // group, key], writers[columns.start + head, query]
                parts.append(_Table(target, source, inner[channel][head][key, query]))
    table = _Table(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
    return _finish(nodes, table, metadata | _about(wiring, pairs))


def _outer(weights: Tensor, is_edge: Tensor, writers: Tensor, readers: Tensor) -> _Table:
    receiver, sender, position = is_edge.nonzero(as_tuple=True)
    return _Table(readers[receiver, position], writers[sender, position], weights[receiver, sender, position])


def _nodes(
    wiring: Wiring, pair: Pair, positions: int, logit: Node, norms: Tensor
) -> tuple[list[Node], Int[Tensor, "sender position"], Int[Tensor, "receiver position"]]:
    """All nodes in causal order, and the number of every writer's and reader's at every position."""
    nodes: list[Node] = []
    strings = token_strings(wiring.model, pair.clean)
    number: dict[tuple[str, Component], list[int]] = {}

    def add(role: str, component: Component, made: list[Node]) -> None:
        number[role, component] = list(range(len(nodes), len(nodes) + len(made)))
        nodes.extend(made)

    places = [-1] if positions == 1 else list(range(positions))
    ids, words = ([-1], ["embedding"]) if positions == 1 else (pair.clean.tolist(), strings)
    site = "blocks.0.hook_resid_pre"
    add(
        "writer",
        wiring.senders[0],
        [
            Node("token", -1, p, i, n, w, site=site)
            for p, i, n, w in zip(places, ids, norms.tolist(), words, strict=True)
        ],
    )
    for block in wiring.blocks:
        for reader in wiring.receivers:
            if reader.layer == block.layer and reader.kind in CHANNELS:
                add("reader", reader, [_node(reader, place) for place in places])
        for writer in wiring.senders:
            if writer.layer == block.layer:
                add("writer", writer, [_node(writer, place) for place in places])
                if writer.kind == "mlp":
                    number["reader", writer] = number["writer", writer]
    number["reader", wiring.receivers[-1]] = [len(nodes)] * positions
    nodes.append(logit)
    writers = torch.tensor([number["writer", writer] for writer in wiring.senders])
    readers = torch.tensor([number["reader", reader] for reader in wiring.receivers])
    return nodes, writers, readers


def _node(component: Component, position: int) -> Node:
    kind, layer, index = component
    prefix = f"blocks.{layer}."
    if kind == "mlp":
        return Node("mlp", layer, position, -1, 0.0, f"L{layer} MLP", site=prefix + "hook_mlp_out")
    if kind == "head":
        return Node("head", layer, position, index, 0.0, f"L{layer}H{index}", site=prefix + "attn.hook_z")
    return Node("head", layer, position, index, 0.0, f"L{layer}H{index}.{kind}", site=f"{prefix}attn.hook_{kind}")


def _finish(nodes: list[Node], table: _Table, metadata: dict[str, Any]) -> Graph:
    """Drop nodes without edges, number the rest anew, order the edges, and sum what leaves each node."""
    target, source, weight = table.target.cpu(), table.source.cpu(), table.weight.cpu()
    leaving = torch.zeros(len(nodes), dtype=torch.float64).index_add_(0, source, weight.double())
    kept = torch.tensor([node.kind in ("token", "logit") for node in nodes])
    kept[target], kept[source] = True, True
    number = kept.cumsum(0) - 1
    order = torch.argsort(target * len(nodes) + source)
    edges = Edges(number[target[order]].int(), number[source[order]].int(), weight[order])
    final = [
        node._replace(attribution=total)
        for node, keep, total in zip(nodes, kept.tolist(), leaving.tolist(), strict=True)
        if keep
    ]
    return Graph(final, edges, torch.full((len(final),), float("nan"), dtype=weight.dtype), metadata)


def _about(wiring: Wiring, pairs: list[Pair]) -> dict[str, Any]:
    """What every graph says of where it comes from; the tokens are those of the first pair."""
    strings = token_strings(wiring.model, pairs[0].clean)
    return {
        "prompt": "".join(strings) if len(pairs) == 1 else f"{len(pairs)} prompts",
        "tokens": pairs[0].clean.tolist(),
        "token_strings": strings,
        "pairs": [
            {"clean": pair.clean.tolist(), "corrupt": None if pair.corrupt is None else pair.corrupt.tolist()}
            for pair in pairs
        ],
        "model": model_info(wiring.model).dict(),
        "dictionaries": [],
    }
