"""Is a component graph the circuit? Against known edges, and by running the model on its edges alone.

`edge_scores` names the edges of a graph by their ends and sums them over positions, `auroc` ranks them against ground truth.
`strongest` keeps the n edges of largest |weight|, and `circuit_value` runs the clean prompt with every other edge corrupted
(patched.py): over growing n these are the faithfulness curves on which methods are compared (Mueller et al. 2025), read
between the values of metadata["metric"] for the clean and the corrupted run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ...saes.errors import UserError
from ..graph import Edges, Graph, Node
from .components import CHANNELS, Wiring, wire
from .measure import build_measure
from .pairs import given_metrics, read_pairs

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def edge_scores(graph: Graph) -> dict[tuple[str, str], float]:
    """(source, target) by label, as ("L0H1", "L2H3.k"), -> weight summed over positions; tokens are "embedding"."""
    ends = [_name(node) for node in graph.nodes]
    scores: dict[tuple[str, str], float] = {}
    for target, source, weight in zip(*(column.tolist() for column in graph.edges), strict=True):
        edge = ends[source], ends[target]
        scores[edge] = scores.get(edge, 0.0) + weight
    return scores


def _name(node: Node) -> str:
    return {"token": "embedding", "logit": "logits"}.get(node.kind, node.label)


def strongest(graph: Graph, n: int) -> Graph:
    """The graph with only its n edges between components of largest |weight|, and the fixed edges inside heads."""
    if not isinstance(n, int) or isinstance(n, bool) or n < 0:
        raise UserError(f"expected a number of edges of at least 0; got {n!r}; give for example 50")
    inside = _is_inside(graph)
    size = graph.edges.weight.abs().masked_fill(inside, -1)
    kept = inside.clone()
    kept[size.topk(min(n, int((~inside).sum()))).indices] = True
    return Graph(list(graph.nodes), Edges(*(column[kept] for column in graph.edges)), graph.row_values, graph.metadata)


def _is_inside(graph: Graph) -> Bool[Tensor, "edge"]:
    is_input = torch.tensor([node.site.endswith(CHANNELS_AT) for node in graph.nodes])
    return is_input[graph.edges.source.long()]


CHANNELS_AT = tuple(f"attn.hook_{name}" for name in CHANNELS)


def circuit_value(model: TransformerBridge, graph: Graph) -> float:
    """The graph's metric (KL for an ACDC graph without targets) when only its edges carry the clean prompt.

    The graph must be of `eap` or `acdc`; its prompts, targets and kind of ablation are those of its metadata.
    """
    about = graph.metadata
    if about.get("method") not in ("eap", "acdc"):
        raise UserError("expected a graph made by eap or acdc; got another; use validate for graphs of trace")
    settings: dict[str, Any] = about["settings"]
    cleans = [torch.tensor(pair["clean"]) for pair in about["pairs"]]
    corrupts = None if settings["ablation"] == "zero" else [torch.tensor(pair["corrupt"]) for pair in about["pairs"]]
    pairs = read_pairs(model, cleans, corrupts, positions=settings["positions"])
    targets = [[tuple(ids) for ids in target["ids"]] for target in about["targets"]]
    metrics = [given_metrics(model, pairs[:1], target)[0] for target in targets] or None
    wiring = wire(model, pairs[0].clean)
    kept = edge_mask(graph, wiring, len(pairs[0].clean) if settings["positions"] else 1)
    removed = wiring.allowed[..., None] & ~kept
    return float(build_measure(wiring, pairs, metrics).measure(removed[None])[0])


def edge_mask(graph: Graph, wiring: Wiring, places: int) -> Bool[Tensor, "receiver sender position"]:
    """Which edges between components a graph has; `places`: positions, 1 where they are summed."""
    rows = {(r.kind, r.layer, r.index): place for place, r in enumerate(wiring.receivers)}
    columns = {(s.kind, s.layer, s.index): place for place, s in enumerate(wiring.senders)}
    mask = torch.zeros(len(rows), len(columns), places, dtype=torch.bool)
    for edge in (~_is_inside(graph)).nonzero()[:, 0].tolist():
        source, target = graph.nodes[graph.edges.source[edge]], graph.nodes[graph.edges.target[edge]]
        sender = ("embed", -1, -1) if source.kind == "token" else (source.kind, source.layer, source.index)
        kind = target.site.rsplit("_", 1)[-1] if target.kind == "head" else target.kind
        receiver = (kind, target.layer, target.index)
        mask[rows[receiver], columns[sender], max(source.position, 0)] = True
    return mask
