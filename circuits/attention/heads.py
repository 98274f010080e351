"""Through which attention heads an edge goes: every edge as parts through the heads of one layer and what bypasses them.

The split (head_rows.py, I5) is exact for each single layer: for every layer l

    A[t, s] = bypass[t, l, s] + sum_h weights[t, l, h, s]

but not for several at once: paths through two layers' heads are counted by both. Heads act here as OV circuits with frozen patterns; why a
head looks where it looks is another question (qk.py), and so is what it brings to a target through features above it (reads.py).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...saes.errors import UserError
from ..graph import Graph, Node
from ..tracing.machine import Machine
from ..tracing.record import Targets
from .again import Again, take_up
from .head_rows import split_rows

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class HeadShare(NamedTuple):
    """How much of the targets' value goes through a head of its layer, as a share."""

    layer: int
    head: int
    share: float


class HeadSplit(NamedTuple):
    """Edges split over the heads of single layers, in float64 on the CPU.

    `target` and `source` are indices into `nodes`; weights[t, l].sum(head) + bypass[t, l] is the edge for every layer l.
    The two rest leaves of a pruned graph count as one source here, the first of them.
    """

    nodes: tuple[Node, ...]
    target: tuple[int, ...]
    layers: tuple[int, ...]
    source: Int[Tensor, "source"]
    weights: Float[Tensor, "target layer head source"]
    bypass: Float[Tensor, "target layer source"]

    def heads(self, by: str = "total", positions: Collection[int] | None = None) -> list[HeadShare]:
        """All heads, those that carry most first.

        `total`: the signed sum of a head's parts over the targets' values; `absolute`: the sum of |parts| over that of all
        parts of its layer. Targets count by their weights (or equally). `positions`: only what sources at these positions
        send through the heads, as a share of the same whole.
        """
        if by not in ("total", "absolute"):
            raise UserError(f"expected by to be 'total' or 'absolute'; got {by!r}; choose one")
        here = self._at(positions)
        weight = self._target_weights()
        size = torch.abs if by == "absolute" else torch.Tensor.clone
        carried = torch.einsum("t,tlhs,s->lh", weight, size(self.weights), here)
        whole = torch.einsum("t,tlhs->l", weight, size(self.weights)) + torch.einsum(
            "t,tls->l", weight, size(self.bypass)
        )
        shares = carried / whole[:, None]
        ranked = shares.flatten().abs().argsort(descending=True, stable=True).tolist()
        count = shares.shape[1]
        return [HeadShare(self.layers[i // count], i % count, float(shares.flatten()[i])) for i in ranked]

    def table(self, n: int = 20) -> str:
        """The n heads that carry most, as text: signed share of the targets' values, share of |parts|, strongest source."""
        absolute = {(layer, head): share for layer, head, share in self.heads("absolute")}
        lines = [f"{'head':<8} {'share':>8} {'|share|':>8}  strongest source"]
        for layer, head, share in self.heads()[:n]:
            parts = self.weights[:, self.layers.index(layer), head]
            place = divmod(int(parts.abs().argmax()), parts.shape[1])
            node = self.nodes[int(self.source[place[1]])]
            lines.append(
                f"L{layer}H{head:<5} {share:>+8.3f} {absolute[layer, head]:>8.3f}  {node.label} at {node.position} "
                f"→ {self.nodes[self.target[place[0]]].label} ({float(parts[place]):+.4f})"
            )
        return "\n".join(lines)

    def _at(self, positions: Collection[int] | None) -> Float[Tensor, "source"]:
        """1 for the sources at these positions, 0 for others."""
        here = [positions is None or self.nodes[i].position in positions for i in self.source.tolist()]
        return torch.tensor(here, dtype=torch.float64)

    def _target_weights(self) -> Float[Tensor, "target"]:
        weight = torch.tensor([self.nodes[i].weight for i in self.target], dtype=torch.float64)
        return weight if weight.any() else torch.ones_like(weight)


def split_heads(
    graph: Graph,
    model: TransformerBridge,
    dictionaries: Any = None,
    targets: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    sources: Sequence[int] | None = None,
    *,
    memory_mib: int = 1024,
) -> HeadSplit:
    """Split the edges into `targets` over the heads of each of `layers`.

    `targets`: indices into graph.nodes (default: those with a weight); `layers`: default all whose attention stands
    below the highest target; `sources`: indices into graph.nodes (default: all with an edge into the targets). `memory_mib` bounds
    the result and, apart, the working memory. UserError for another model or other dictionaries than the graph's, for targets without
    a row, for layers that the model lacks.
    """
    wanted = [i for i, node in enumerate(graph.nodes) if node.weight] if targets is None else list(targets)
    wrong = [i for i in sources or () if not 0 <= i < len(graph)]
    if wrong:
        raise UserError(f"expected sources from 0 to {len(graph) - 1}; got {wrong}; name some nodes")
    again = take_up(graph, model, dictionaries)
    rows = _rows(graph, again, wanted)
    chosen = _layers(again.machine, rows, layers)
    fed = torch.isin(graph.edges.target, torch.tensor(wanted, dtype=graph.edges.target.dtype))
    source = graph.edges.source[fed].long().unique() if sources is None else torch.tensor(list(sources))
    heads = len(again.machine.frozen.blocks[0].W_O)
    need = len(wanted) * len(chosen) * (heads + 1) * len(source) * 8 / 2**20
    if need > memory_mib:
        raise UserError(
            f"expected a split of at most memory_mib = {memory_mib}; {len(wanted)} targets × {len(chosen)} layers × {heads} heads × "
            f"{len(source)} sources need {need:,.0f}; name fewer targets, layers or sources, or raise it"
        )
    fold = _Fold(graph, again, wanted, source)
    weights = torch.zeros(len(wanted), len(chosen), heads, len(source), dtype=torch.float64)
    bypass = torch.zeros(len(wanted), len(chosen), len(source), dtype=torch.float64)
    with torch.no_grad():
        for place, layer in enumerate(chosen):
            for parts in split_rows(again.machine, again.layout.columns, rows, layer, memory_mib):
                for row, node in enumerate(parts.node.tolist()):
                    mine = wanted.index(node)
                    weights[mine, place] = fold(mine, parts.heads[row])
                    bypass[mine, place] = fold(mine, parts.bypass[row])
    return HeadSplit(graph.nodes, tuple(wanted), tuple(chosen), source, weights, bypass)


def _rows(graph: Graph, again: Again, wanted: list[int]) -> list[Targets]:
    """The rows of the wanted nodes."""
    wrong = [i for i in wanted if not 0 <= i < len(graph)]
    if wrong or not wanted or len(set(wanted)) < len(wanted):
        raise UserError(
            f"expected targets as different indices from 0 to {len(graph) - 1}; got {wrong or wanted}; name some nodes"
        )
    asked, rows = torch.tensor(wanted), []
    for each in again.rows:
        mine = torch.isin(each.nodes, asked).nonzero()[:, 0]
        if len(mine):
            rows.append(each.only(mine))
    absent = set(wanted) - {i for each in rows for i in each.nodes.tolist()}
    if absent:
        node = graph.nodes[min(absent)]
        raise UserError(
            f"expected targets with a row of their own that attention feeds; got the {node.kind} {node.label!r}; "
            "name features (of neurons traced in two, their gate and up nodes) or targets"
        )
    return rows


def _layers(machine: Machine, rows: list[Targets], layers: Sequence[int] | None) -> list[int]:
    count = len(machine.frozen.blocks)
    if layers is None:
        return list(range(min(max(each.station.layer for each in rows) + 1, count)))
    wrong = [layer for layer in layers if not 0 <= layer < count]
    if wrong or not layers:
        raise UserError(f"expected layers from 0 to {count - 1}; got {wrong or 'none'}; name layers of this model")
    return list(dict.fromkeys(layers))


class _Fold:
    """From columns to sources; what has no edge of its own is added to the graph's first rest leaf."""

    def __init__(self, graph: Graph, again: Again, wanted: list[int], source: Int[Tensor, "source"]):
        place = torch.full((len(graph) + 1,), -1)
        place[source] = torch.arange(len(source))
        rest = next((i for i, node in enumerate(graph.nodes) if node.kind == "rest" and node.layer == -1), None)
        self.count, self.rest = len(source), -1 if rest is None else int(place[rest])
        self.column = again.node
        self.place = place[again.node]
        self.has_edge = torch.zeros(len(wanted), len(graph) + 1, dtype=torch.bool)
        for row, target in enumerate(wanted):
            self.has_edge[row, graph.edges.source[graph.edges.target == target].long()] = True

    def __call__(self, target: int, row: Float[Tensor, "*part column"]) -> Float[Tensor, "*part source"]:
        row, alive = row.double().cpu(), self.has_edge[target][self.column]
        out = row.new_zeros(*row.shape[:-1], self.count)
        named = alive & (self.place >= 0)
        out.index_add_(-1, self.place[named], row[..., named])
        if self.rest >= 0:
            out[..., self.rest] += row[..., ~alive].sum(-1)
        return out


def attach_heads(graph: Graph, split: HeadSplit, n: int = 200) -> Graph:
    """The graph with the n largest splits in its metadata, for export.

    metadata["heads"] = [{target, source, layer, heads: [part of each head], bypass}, ...]: nodes by index, largest sum of
    |parts of heads| first. Raises UserError when the split is of another graph.
    """
    if split.nodes != graph.nodes:
        raise UserError(
            "expected a split of this graph; got one of a graph with other nodes; split again after pruning"
        )
    size = split.weights.abs().sum(2)
    best = size.flatten().argsort(descending=True, stable=True)[: max(n, 0)]
    entries = []
    for place in best[size.flatten()[best] > 0].tolist():
        target, layer, source = (int(i) for i in torch.unravel_index(torch.tensor(place), size.shape))
        entries.append(
            {
                "target": split.target[target],
                "source": int(split.source[source]),
                "layer": split.layers[layer],
                "heads": split.weights[target, layer, :, source].tolist(),
                "bypass": float(split.bypass[target, layer, source]),
            }
        )
    return Graph(list(graph.nodes), graph.edges, graph.row_values, graph.metadata | {"heads": entries})
