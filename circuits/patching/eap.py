"""Edge attribution patching: what replacing each edge would do, for all edges at once, from gradients.

To first order, replacing what writer u contributes to reader v by its value in a corrupted run takes from the metric m

    w(u -> v) = sum_positions (z_u(clean) - z_u(corrupt)) . dm/d(stream that v reads)          (Syed et al. 2023, eq. 1)

so that a positive weight supports m. The gradient is the full one: attention patterns, norms and MLPs respond, nothing is frozen.
The edges of one writer sum to the effect of its whole output, Delta z_u . dm/dz_u.

`steps` > 1 is EAP with integrated gradients on the inputs (Hanna et al. 2024): the gradient is averaged over embeddings
e(corrupt) + alpha (e(clean) - e(corrupt)), alpha at the midpoints of `steps` equal intervals (the paper takes right ends:
midpoints err by 1/steps^2, not 1/steps). Then the embedding's edges, a complete cut, sum to m(clean) - m(corrupt);
the edges of a graph as a whole sum to nothing, because a path counts once for each cut.

Inside a head (see component_graph.py) the score of q, k or v is Delta q . dm/dq. Post-norms are linear at their denominators of
each run when a head's output is told apart from the others'.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from ...saes.errors import UserError
from ..graph import Graph, Node
from .component_graph import Weights, component_graph
from .components import CHANNELS, Wiring, wire
from .measure import embedding_norms
from .pairs import Metric, Pair, default_metric, given_metrics, label, read_pairs
from .patched import Outcome, run
from .slopes import inside, slopes

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def eap(
    model: TransformerBridge,
    clean: Any,
    corrupt: Any = None,
    targets: Sequence[Any] | None = None,
    *,
    steps: int = 1,
    positions: bool = False,
) -> Graph:
    """Score every edge between embedding, heads, MLPs and logits by attribution patching; weights > 0 support the targets.

    `clean`, `corrupt`: a prompt (text, or token ids) each, or two lists of prompts, over whose pairs scores are averaged.
    Without `corrupt` every writer is replaced by zero: quick, but far from anything that the model saw, so that a
    corrupted prompt of the same length, which changes only what the question is about, says more.
    `targets`: tokens, ids, or pairs (a, b) for logit a - logit b; with lists of prompts also a list of such lists, one for each.
    Default: the likeliest clean token minus the likeliest corrupted one. `steps` > 1: integrated gradients.
    `positions`: a node for every position instead of sums over them. Memory grows with writers x tokens x width.
    """
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise UserError(f"expected steps of at least 1; got {steps!r}; 1 is plain EAP, 5 to 20 integrate")
    pairs = read_pairs(model, clean, corrupt, positions=positions)
    metrics = None if targets is None else given_metrics(model, pairs, targets)
    wiring = wire(model, pairs[0].clean)
    scored = [
        _score(wiring, pair, None if metrics is None else metrics[place], steps, positions)
        for place, pair in enumerate(pairs)
    ]
    weights = _mean([one.weights for one in scored])
    value, corrupted = (
        sum(column) / len(scored) for column in ([s.clean for s in scored], [s.corrupt for s in scored])
    )
    norms = embedding_norms([one.embedding for one in scored], positions)
    last = len(pairs[0].clean) - 1 if positions else -1
    logit = Node("logit", model.cfg.n_layers, last, -1, value, label([one.metric for one in scored]), weight=1.0)
    metadata = {
        "method": "eap",
        "targets": [{"ids": one.metric.ids, "label": one.metric.label} for one in scored],
        "metric": {"clean": value, "corrupt": corrupted},
        "settings": {"steps": steps, "positions": positions, "ablation": "zero" if corrupt is None else "corrupt"},
    }
    return component_graph(wiring, weights, weights.outer != 0, pairs, logit, norms, metadata)


class Scored(NamedTuple):
    """One pair's weights and its metric: what it is, and its value in both runs."""

    weights: Weights
    metric: Metric
    clean: float
    corrupt: float
    embedding: Float[Tensor, "token d"]


def _score(wiring: Wiring, pair: Pair, metric: Metric | None, steps: int, positions: bool) -> Scored:
    clean = run(wiring, pair.clean)
    other = _zero(clean) if pair.corrupt is None else run(wiring, pair.corrupt)
    if metric is None:
        metric = default_metric(wiring.model, clean.unembed[0], None if pair.corrupt is None else other.unembed[0])
    change = (clean.outputs - other.outputs)[:, 0]
    changes = [
        {name: (now[name] - then[name])[0] for name in CHANNELS}
        for now, then in zip(clean.channels, other.channels, strict=True)
    ]
    embeds = [other.outputs[0, 0] + alpha * change[0] for alpha in _midpoints(steps)]
    each = []
    for embed in embeds:
        found = slopes(wiring, pair.clean, embed, metric.direction)
        shape = "receiver sender token" if positions else "receiver sender"
        outer = einsum(found.receivers, change, f"receiver token d, sender token d -> {shape}")
        outer = (outer if positions else outer[..., None]) * wiring.allowed.to(outer)[..., None]
        each.append(Weights(outer, inside(wiring, pair.clean, embed, found.z, changes, positions)))
    corrupted = run(wiring, pair.clean, wiring.allowed[None, :, :, None], other.outputs[:, 0])
    before, after = (float(outcome.unembed[0] @ metric.direction) for outcome in (clean, corrupted))
    return Scored(_mean(each), metric, before, after, clean.outputs[0, 0])


def _zero(outcome: Outcome) -> Outcome:
    channels = [{name: torch.zeros_like(value) for name, value in block.items()} for block in outcome.channels]
    zeros = (torch.zeros_like(value) for value in (outcome.outputs, outcome.unembed, outcome.logits))
    outputs, unembed, logits = zeros
    return Outcome(outputs, channels, unembed, logits)


def _midpoints(steps: int) -> list[float]:
    return [1.0] if steps == 1 else [(step + 0.5) / steps for step in range(steps)]


def _mean(many: list[Weights]) -> Weights:
    outer = torch.stack([one.outer for one in many]).mean(0)
    inner = [
        {name: torch.stack([block[name] for block in blocks]).mean(0) for name in CHANNELS}
        for blocks in zip(*(one.inner for one in many), strict=True)
    ]
    return Weights(outer, inner)
