"""Why a head looks where it looks: its score at a query and a key position as a sum over pairs of nodes.

Everything that stands in the frozen stream at the query position is a sum over nodes (features, tokens, positional embeddings,
biases, errors, first position, rest), and so is everything at the key position; the score is bilinear in the two (bilinear.py), so

    score = sum_ij  q_i . k_j (+ ALiBi's term)        q_i, k_j [e]: node i's share of the scaled query, node j's of the key       (I6)

with e the head's width. The e coordinates of the query and of the key are recorded as rows of a graph are, so that what reaches
a position through lower attention layers, norms and skip paths is counted with the node where it came from. Frozen are lower
patterns, norm scales (q/k-norms too) and the rotation of each position; the table is exact for the score before any cap. What
the softmax makes of it, in competition with other keys, is not a matter of one pair of positions.

`split_score` asks through which lower heads one side was made: the score is linear in the key's stream when the query is held, and the
other way round, and so is a row like any other that the heads of each lower layer split (head_rows.py). On repeated tokens an induction
head's key is made by a previous-token head from the position before: `split_score(...).heads(positions=[key - 1])` names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...saes.errors import UserError
from ..graph import Graph, Node
from ..tracing.record import Targets, record_rows
from ..tracing.sources import Rows
from .bilinear import Side
from .head_rows import split_rows
from .head_score import Scene, held, take_scene
from .heads import HeadSplit

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BLOCK = 512  # query nodes whose pairs are looked at together


class Pair(NamedTuple):
    """What one node at the query's side and one at the key's side make together of the score."""

    query: int
    key: int
    contribution: float


class QKTable(NamedTuple):
    """A head's score before its cap. `nodes` are those of both sides; factors in float64, the scale in the query's.

    `graph_nodes`: each node's index in the graph that was given, -1 for none (for what a pruned graph has folded). `alibi`:
    the term of the score that depends on the key's position alone.
    """

    layer: int
    head: int
    query: int
    key: int
    score: float
    alibi: float
    cap: float | None
    nodes: tuple[Node, ...]
    graph_nodes: tuple[int, ...]
    pairs: tuple[Pair, ...]
    query_factors: Float[Tensor, "node e"]
    key_factors: Float[Tensor, "node e"]

    def sum(self) -> float:
        """The sum over all pairs, with ALiBi's term; the score, if the ledger closes."""
        return float(self.query_factors.sum(0) @ self.key_factors.sum(0)) + self.alibi

    def query_marginals(self) -> Float[Tensor, "node"]:
        """What each node makes of the score at the query's side, with all keys' nodes together."""
        return self.query_factors @ self.key_factors.sum(0)

    def key_marginals(self) -> Float[Tensor, "node"]:
        """What each node makes of the score at the key's side."""
        return self.key_factors @ self.query_factors.sum(0)

    def contributions(self, query: Sequence[int], key: Sequence[int]) -> Float[Tensor, "query key"]:
        """The contributions of any pairs of nodes."""
        return self.query_factors[list(query)] @ self.key_factors[list(key)].T

    def table(self) -> str:
        """The pairs as text, and how much of the score they make."""
        head = f"L{self.layer}H{self.head} score of query {self.query} at key {self.key}: {self.score:.4f}"
        lines = [head, f"{'contribution':>12}  {'query side':<36} key side"]
        for query, key, contribution in self.pairs:
            names = [f"{self.nodes[i].label} at {self.nodes[i].position}" for i in (query, key)]
            lines.append(f"{contribution:>+12.4f}  {names[0]:<36.36} {names[1]}")
        return "\n".join(lines)

    def tracing_results(self, ids: Sequence[str], n: int = 20) -> dict[str, list[list[Any]]]:
        """Neuronpedia's `qk_tracing_results`; `ids` name `nodes` in their order."""
        marginals = {"q": self.query_marginals(), "k": self.key_marginals()}
        top = {
            f"top_{side}_marginal_contributors": [
                [ids[i], float(amount[i])] for i in amount.abs().argsort(descending=True)[:n].tolist() if amount[i]
            ]
            for side, amount in marginals.items()
        }
        return {"pair_wise_contributors": [[ids[q], ids[k], amount] for q, k, amount in self.pairs[:n]], **top}


def qk_table(
    model: TransformerBridge,
    prompt: str | Tensor | None,
    layer: int,
    head: int,
    query: int,
    key: int,
    dictionaries: Any = None,
    *,
    graph: Graph | None = None,
    max_features: int = 2048,
    n: int = 20,
    memory_mib: int = 256,
) -> QKTable:
    """The score of a head at a query and a key position (negative: from the end), and the n pairs that make most of it.

    Nodes are those of `graph` (a graph of the same prompt; the prompt is then None), or else the `max_features` features of
    largest direct effect on the score. UserError for a layer, head or position that is not there, a masked pair, or an
    attention whose score is not bilinear.
    """
    scene = take_scene(model, prompt, (layer, head, query, key), dictionaries, graph, max_features)
    rows = [_coordinates(scene, side, place) for place, side in enumerate(("query", "key"))]
    width, columns = scene.form.query.W.shape[1], scene.layout.columns
    raw = scene.machine.frozen.embed.new_zeros(2 * width, columns.count)
    with torch.no_grad():
        for recorded in record_rows(scene.machine, columns, rows, memory_mib):
            raw[recorded.node.to(raw.device)] = recorded.weights
    raw = raw.double()
    queries = scene.form.scale * (scene.form.query.map[scene.query].double() @ raw[:width]).T.cpu()
    keys = (scene.form.key.map[scene.key].double() @ raw[width:]).T.cpu()
    return QKTable(
        layer,
        head,
        scene.query,
        scene.key,
        scene.score,
        scene.alibi,
        scene.form.cap,
        tuple(scene.layout.nodes),
        scene.graph_nodes,
        _largest(queries, keys, n),
        queries,
        keys,
    )


def split_score(
    model: TransformerBridge,
    prompt: str | Tensor | None,
    layer: int,
    head: int,
    query: int,
    key: int,
    dictionaries: Any = None,
    *,
    side: str = "key",
    layers: Sequence[int] | None = None,
    graph: Graph | None = None,
    max_features: int = 2048,
    memory_mib: int = 256,
) -> HeadSplit:
    """A head's score, its query or its key held, split over the heads of each lower layer through which the other side was made.

    The target of the split is the score, as a node of its own, the last. Arguments and errors as of `qk_table`.
    """
    if side not in ("query", "key"):
        raise UserError(f"expected side to be 'query' or 'key'; got {side!r}; choose one")
    chosen = list(range(layer)) if layers is None else list(dict.fromkeys(layers))
    scene = take_scene(model, prompt, (layer, head, query, key), dictionaries, graph, max_features)
    wrong = [each for each in chosen if not 0 <= each < layer]
    if wrong or not chosen:
        raise UserError(f"expected layers below {layer}; got {wrong or 'none'}; name layers from 0 to {layer - 1}")
    cotangent, constant, position = held(scene.form, scene.query, scene.key, side)
    count, value = len(scene.layout.nodes), scene.score - scene.alibi
    rows = Rows(cotangent[None], constant[None], torch.tensor([value]).to(cotangent))
    target = scene.targets([position], lambda _: rows, count)
    weights, bypass = [], []
    with torch.no_grad():
        for each in chosen:
            done = next(split_rows(scene.machine, scene.layout.columns, [target], each, memory_mib))
            weights.append(done.heads[0].double().cpu())
            bypass.append(done.bypass[0].double().cpu())
    label = f"L{layer}H{head} score by its {side}"
    nodes = (*scene.layout.nodes, Node("direction", layer, position, -1, value, label, weight=1.0))
    return HeadSplit(
        nodes, (count,), tuple(chosen), torch.arange(count), torch.stack(weights)[None], torch.stack(bypass)[None]
    )


def _coordinates(scene: Scene, side: str, number: int) -> Targets:
    """The rows of the query's or the key's coordinates, right after the projection."""
    here: Side = getattr(scene.form, side)
    position, width = getattr(scene, side), here.W.shape[1]

    def build(chosen: Tensor) -> Rows:
        at = chosen.to(here.W.device)
        return Rows(here.W.T[at], here.b[at], here.raw[position, at])

    return scene.targets([position] * width, build, number * width)


def _largest(query: Float[Tensor, "node e"], key: Float[Tensor, "node e"], n: int) -> tuple[Pair, ...]:
    """The n pairs of largest |contribution|, a block of query nodes at a time."""
    best = torch.empty(0, dtype=torch.float64)
    places = torch.empty(0, dtype=torch.int64)
    for start in range(0, len(query), BLOCK):
        made = (query[start : start + BLOCK] @ key.T).flatten()
        largest = made.abs().topk(min(n, len(made))).indices
        best, places = torch.cat([best, made[largest]]), torch.cat([places, largest + start * len(key)])
        keep = best.abs().argsort(descending=True, stable=True)[:n]
        best, places = best[keep], places[keep]
    return tuple(
        Pair(place // len(key), place % len(key), amount)
        for place, amount in zip(places.tolist(), best.tolist(), strict=True)
        if amount
    )
