"""Is the circuit real? Do the ablations that a graph predicts, in the model itself, and compare.

A feature's signed total attribution says what the targets would lose without it, everything linearised. `validate`
sets features to zero in the real model, where attention patterns, norms and MLPs respond, and measures the change of

    sum_i w_i (logit_i - mean_v logit_v)        before any soft-cap, w the graph's target weights.

* One at a time: the features of largest |attribution| and as many random others; Spearman's rank correlation between
  predicted and measured change, with a 95 % interval from resampling the features.
* Together: the `top` features of largest positive attribution at once, against random controls. Each control replaces
  every feature by another active one of the same layer, position and about the same size (one of the 5 nearest in |activation|),
  so that only the choice differs.

Agreement inside the frozen model would only check the code (the tests do that); what is measured here is what freezing left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..saes.errors import UserError
from ..saes.models import model_info
from .frozen import capture
from .graph import Graph, Node
from .interventions import run_edited
from .sources import Source, build_source
from .trace import prompt_tokens, transcoders_by_layer

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

CONTROLS, NEAREST, RESAMPLES = 5, 5, 1000
BATCH_TOKENS = 256  # tokens of one batch of ablated prompts: bounds memory, the logits are [batch token vocab]


@dataclass(frozen=True)
class Validation:
    """Predicted and measured changes of the weighted target logits under ablation (negative: the targets fall)."""

    nodes: tuple[int, ...]
    """Indices into graph.nodes of the features ablated one at a time."""
    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    spearman: float
    interval: tuple[float, float]
    """95 % interval of `spearman` over resampled features."""
    top: int
    """How many features were ablated together."""
    top_predicted: float
    top_measured: float
    control_measured: tuple[float, ...]
    """The same for each random control matched in layer, position and size of activation."""

    def __str__(self) -> str:
        controls = (
            ", ".join(f"{value:+.2f}" for value in self.control_measured) or "none (no other active features to match)"
        )
        return (
            f"one at a time ({len(self.nodes)} features): Spearman {self.spearman:.2f} [{self.interval[0]:.2f}, {self.interval[1]:.2f}]\n"
            f"top {self.top} together: predicted {self.top_predicted:+.2f}, measured {self.top_measured:+.2f}; matched controls {controls}"
        )


def validate(
    graph: Graph,
    model: TransformerBridge,
    dictionaries: Sequence[Any] | None = None,
    edges: int = 64,
    seed: int = 0,
    *,
    top: int = 20,
) -> Validation:
    """Ablate features of `graph` in `model` and compare with the graph's predictions.

    `edges`: how many effects (feature → weighted targets) to measure one at a time; `top`: how many features to ablate
    together. Costs edges + 7 forward passes of the prompt. Raises UserError when the model or a dictionary is not the
    one that the graph was traced with, or the graph has too few features.
    """
    by_layer = _same_origin(graph, model, dictionaries or [])
    tokens = prompt_tokens(model, torch.tensor(graph.metadata["tokens"]))
    features = [i for i, node in enumerate(graph.nodes) if node.is_feature]
    if len(features) < 3 or edges < 3 or top < 1:
        raise UserError(
            f"expected at least 3 features, 3 edges and top 1 to compare; got {len(features)}, {edges} and {top}; "
            "trace with a larger max_features"
        )
    generator = torch.Generator().manual_seed(seed)
    picked = _pick(graph, features, edges, generator)
    best = sorted(features, key=lambda i: -graph.nodes[i].attribution)[:top]
    together = [graph.nodes[i] for i in best]
    controls = _controls(model, tokens, by_layer, together, generator)
    sets = [[], *([graph.nodes[i]] for i in picked), together, *controls]
    effects = _effects(graph, model, tokens, sets, by_layer)
    predicted = torch.tensor([-graph.nodes[i].attribution for i in picked], dtype=torch.float64)
    measured = effects[1 : len(picked) + 1]
    return Validation(
        tuple(picked),
        tuple(predicted.tolist()),
        tuple(measured.tolist()),
        spearman(predicted, measured),
        _interval(predicted, measured, generator),
        len(best),
        -sum(node.attribution for node in together),
        float(effects[len(picked) + 1]),
        tuple(effects[len(picked) + 2 :].tolist()),
    )


def _same_origin(graph: Graph, model: TransformerBridge, dictionaries: Sequence[Any]) -> dict[int, Any]:
    mine, theirs = model_info(model), graph.metadata.get("model", {})
    absent = [name for name in ("tokens", "targets") if name not in graph.metadata]
    if absent:
        raise UserError(
            f"expected a graph made by trace; this one's metadata lacks {' and '.join(absent)}; trace the prompt again"
        )
    if theirs.get("fingerprint") != mine.fingerprint:
        raise UserError(
            f"expected the model that the graph was traced with ({theirs.get('name')}); got {mine.name} with other weights; load that one"
        )
    known = {reference["fingerprint"]: reference["site"] for reference in graph.metadata.get("dictionaries", [])}
    missing = set(known) - {dictionary.fingerprint for dictionary in dictionaries}
    if missing:
        names = ", ".join(sorted(known[name] for name in missing))
        raise UserError(f"expected the dictionaries that the graph was traced with; none given for {names}; pass them")
    return transcoders_by_layer(model, dictionaries)


def _pick(graph: Graph, features: list[int], count: int, generator: torch.Generator) -> list[int]:
    """Half of `count` by largest |attribution|, the other half at random among the rest."""
    ordered = sorted(features, key=lambda i: -abs(graph.nodes[i].attribution))
    first = ordered[: (count + 1) // 2]
    others = ordered[len(first) :]
    return first + [others[i] for i in torch.randperm(len(others), generator=generator)[: count - len(first)].tolist()]


def _effects(
    graph: Graph,
    model: TransformerBridge,
    tokens: Int[Tensor, "token"],
    sets: Sequence[Sequence[Node]],
    by_layer: dict[int, Any],
) -> Float[Tensor, "set"]:
    """Change of the weighted, centred target logits under each set's ablation; the first set is the empty one."""
    batch = max(1, BATCH_TOKENS // len(tokens))
    logits = torch.cat(
        [run_edited(model, tokens, sets[i : i + batch], 0.0, by_layer)[1].double() for i in range(0, len(sets), batch)]
    )
    logits = logits - logits.mean(1, keepdim=True)
    value = torch.zeros(len(sets), dtype=torch.float64, device=logits.device)
    for target in graph.metadata["targets"]:
        for token, sign in zip(target["ids"], (1, -1), strict=False):
            value += target["weight"] * sign * logits[:, token]
    return (value - value[0]).cpu()


def _controls(
    model: TransformerBridge,
    tokens: Int[Tensor, "token"],
    by_layer: dict[int, Any],
    top: list[Node],
    generator: torch.Generator,
) -> list[list[Node]]:
    """Random sets like `top`: same layers, positions and about the same activations; empty when nothing can be matched."""
    frozen = capture(model, tokens)
    sources = {
        node.layer: build_source(frozen.blocks[node.layer], by_layer.get(node.layer), node.layer) for node in top
    }
    avoid = {(node.layer, node.position, node.index) for node in top}
    controls = []
    for _ in range(CONTROLS):
        taken, control = set(avoid), []
        for node in top:
            other = _matched(sources[node.layer], node, taken, generator)
            if other is not None:
                control.append(other)
                taken.add((other.layer, other.position, other.index))
        controls.append(control)
    return [control for control in controls if control]


def _matched(
    source: Source | None, node: Node, taken: set[tuple[int, int, int]], generator: torch.Generator
) -> Node | None:
    assert source is not None
    values = source.values[node.position]
    slots = torch.arange(len(values), device=values.device)
    latents = source.latent(torch.full_like(slots, node.position), slots).tolist()
    free = [
        slot
        for slot, latent in enumerate(latents)
        if values[slot] != 0 and (node.layer, node.position, latent) not in taken
    ]
    if not free:
        return None
    near = sorted(free, key=lambda slot: abs(abs(float(values[slot])) - abs(node.value)))[:NEAREST]
    slot = near[int(torch.randint(len(near), (1,), generator=generator))]
    return Node(
        source.kind,
        node.layer,
        node.position,
        latents[slot],
        float(values[slot]),
        f"L{node.layer} {source.kind} {latents[slot]}",
    )


def spearman(a: Float[Tensor, "item"], b: Float[Tensor, "item"]) -> float:
    """Rank correlation; ties share their mean rank. 0 when one side is constant."""
    ranks = torch.stack([_ranks(a), _ranks(b)])
    ranks = ranks - ranks.mean(1, keepdim=True)
    size = ranks.norm(dim=1).prod()
    return float(ranks[0] @ ranks[1] / size) if size > 0 else 0.0


def _ranks(x: Float[Tensor, "item"]) -> Float[Tensor, "item"]:
    _, place, counts = x.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2)[place].double()


def _interval(predicted: Tensor, measured: Tensor, generator: torch.Generator) -> tuple[float, float]:
    draws = torch.randint(len(predicted), (RESAMPLES, len(predicted)), generator=generator)
    values = torch.tensor([spearman(predicted[draw], measured[draw]) for draw in draws], dtype=torch.float64)
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
