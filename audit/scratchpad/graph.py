"""Through which tokens does the answer come, by its attribution graph; and does ablating them agree?

`circuits.trace` explains the logit of the answer's first token, at the token before it. Going back from there along the normalised
edges Ahat (circuits/simplify/scores.py), each path is taken up by the first node that it meets at one of these places, or by its leaf:

    claimed      tokens of the scratchpad that carry a claimed value
    scratchpad   its other tokens
    hint         tokens of the hint
    prompt       other tokens of the prompt, BOS left out
    error        what a dictionary or a MLP left whole does not explain, wherever it is
    other        BOS, biases, positions, the cue's own tokens

`shares` sum to 1. A path through attention alone has no node between its ends: a prompt token copied by a head into the scratchpad, and
from there into the answer, counts for the prompt. And patterns are held, so that *where* a head looks is credited to nothing.

Verified. Each group is taken away in the real model, everything free to respond: its features ablated, and the embeddings of its tokens
replaced by the mean embedding of the run. `measured` is the drop of the answer's first token, `control` the mean drop when as many features
and tokens (or all there are) are taken at random from the other groups; `measured_features` and `control_features` leave the embeddings
alone. Where shares and measured drops disagree, believe the drops; where control is as large as measured, nothing was verified.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...circuits.experiment.edits import Catalogue, Edit
from ...circuits.experiment.interventions import Editing, resolve
from ...circuits.graph import Graph, Node
from ...circuits.simplify.scores import influence, normalised, target_weights
from ...circuits.trace import trace
from ...circuits.tracing.frozen import quiet
from .spans import Written

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

GROUPS = ("claimed", "scratchpad", "hint", "prompt")
REST = ("error", "other")


@dataclass(frozen=True)
class GraphShares:
    """Shares of influence by place; drops when each is ablated, and of its control; how much the graph explains."""

    shares: dict[str, float]
    measured: dict[str, float]
    control: dict[str, float]
    measured_features: dict[str, float]
    control_features: dict[str, float]
    features: dict[str, int]
    completeness: float
    replacement: float
    error_share: float
    residual: float

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        return asdict(self)


def graph_faithfulness(
    model: TransformerBridge,
    run: Written,
    *,
    claimed: Sequence[int] = (),
    hint: Sequence[int] = (),
    dictionaries: Any = None,
    max_features: int = 512,
    draws: int = 4,
    seed: int = 0,
) -> GraphShares:
    """Trace the answer and share its influence out by place; `claimed` and `hint` are token positions.

    UserError for a model that cannot be traced (see `trace`).
    """
    tokens = _asked(run)
    graph = trace(model, tokens, dictionaries, targets=[run.answer.ids[0]], max_features=max_features)
    group = groups(run, claimed, hint)
    scores = graph.scores()
    catalogue = Catalogue(model, dictionaries)
    before = _first(catalogue, run)
    generator = torch.Generator().manual_seed(seed)
    found = {
        name: _ablated(catalogue, run, graph, group, name, before, draws, generator) for name in GROUPS if name in group
    }
    measured, control, only, only_control, count = ({name: one[i] for name, one in found.items()} for i in range(5))
    return GraphShares(
        shares(graph, group), measured, control, only, only_control, {name: int(n) for name, n in count.items()},
        scores.completeness, scores.replacement, scores.leaf_shares.get("error", 0.0), graph.residual,
    )  # fmt: skip


def _ablated(
    catalogue: Catalogue,
    run: Written,
    graph: Graph,
    group: Sequence[str],
    name: str,
    before: float,
    draws: int,
    generator: torch.Generator,
) -> tuple[float, float, float, float, int]:
    """Drop and control with features and tokens taken away, the same with features alone, and how many features."""

    def drawn(some: list[Any], count: int) -> list[Any]:
        return [some[i] for i in torch.randperm(len(some), generator=generator)[:count].tolist()]

    features = [node for node in graph.nodes if node.is_feature and 0 <= node.position < len(group)]
    nodes = [node for node in features if group[node.position] == name]
    rest = [node for node in features if group[node.position] not in ("", name)]
    where = [position for position, given in enumerate(group) if given == name]
    others = [position for position, given in enumerate(group) if given not in ("", name)]
    picks = [(drawn(rest, len(nodes)), drawn(others, len(where))) for _ in range(draws)]
    return (
        _drop(catalogue, run, nodes, where, before),
        fmean(_drop(catalogue, run, some, spots, before) for some, spots in picks),
        _drop(catalogue, run, nodes, (), before),
        fmean(_drop(catalogue, run, some, (), before) for some, _ in picks),
        len(nodes),
    )


def groups(run: Written, claimed: Sequence[int], hint: Sequence[int]) -> list[str]:
    """Which group each position before the answer belongs to; "" for BOS (position 0) and the cue."""
    found = [
        "prompt" if p in run.spans.prompt else "scratchpad" if p in run.scratchpad else ""
        for p in range(run.spans.answer.start)
    ]
    found[0] = ""
    for name, positions in (("hint", hint), ("claimed", claimed)):
        for position in positions:
            found[position] = name
    return found


def shares(graph: Graph, group: Sequence[str]) -> dict[str, float]:
    """The share of influence that each group is the first to meet, going back from the target; they sum to 1."""
    place = [_place(node, group) for node in graph.nodes]
    taken = torch.tensor([name != "" for name in place])
    keep = ~taken[graph.edges.target]
    edges = type(graph.edges)(*(column[keep] for column in graph.edges))
    all_shares: Float[Tensor, "edge"] = normalised(graph.edges, len(graph))[keep]
    weights = target_weights(graph)
    arriving = influence(edges, all_shares, weights)
    total = float(weights.sum()) or 1.0
    found = {
        name: sum(float(arriving[i]) for i, own in enumerate(place) if own == name) / total
        for name in (*GROUPS, "error")
    }
    return found | {"other": max(0.0, 1 - sum(found.values()))}


def _place(node: Node, group: Sequence[str]) -> str:
    if node.kind == "error":
        return "error"
    is_inside = 0 <= node.position < len(group) and node.kind not in ("logit", "direction", "position", "first")
    return group[node.position] if is_inside else ""


def _drop(catalogue: Catalogue, run: Written, nodes: Sequence[Node], positions: Sequence[int], before: float) -> float:
    """1 - Q / P of the answer's first token with features ablated and the embeddings at positions made the mean one; P is `before`."""
    tokens = _asked(run).to(next(catalogue.model.parameters()).device)
    plan = resolve(catalogue, tokens, [[Edit(list(nodes))] if nodes else []])

    def blur(embedding: Tensor, hook: Any) -> Tensor:
        blurred = embedding.clone()
        if positions:
            blurred[:, list(positions)] = embedding[:, 1:].mean(1, keepdim=True)
        return blurred

    return 1 - _first(catalogue, run, [("hook_embed", blur), *Editing(catalogue, plan).hooks()]) / max(before, 1e-300)


def _first(catalogue: Catalogue, run: Written, hooks: Sequence[Any] = ()) -> float:
    """P of the answer's first token."""
    tokens = _asked(run)[None].to(next(catalogue.model.parameters()).device)
    with torch.no_grad(), quiet():
        logits = catalogue.model.run_with_hooks(tokens, fwd_hooks=list(hooks))
    return float(logits[0, -1].double().softmax(0)[run.answer.ids[0]])


def _asked(run: Written) -> Int[Tensor, "token"]:
    return run.tokens[: run.spans.answer.start]
