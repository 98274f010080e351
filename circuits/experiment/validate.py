"""Is the circuit real? Do the ablations that a graph predicts, in the model itself, and compare.

A feature's signed total attribution says what the targets would lose without it, everything linearised. `validate` sets
features to zero in the real model, where attention patterns, norms and MLPs respond (or, with `constrained=n`, where the
first n blocks after the feature are clamped: constrained patching), and measures the change of the weighted targets (logits before
any soft-cap, centred as they were traced; features; directions).

* Feature -> targets, one at a time: the features of largest |attribution| and as many random others.
* Feature -> feature: the same runs, read at other features: what their row loses against what the graph's paths predict.
  Spearman's rank correlation, cosine and normalised error, each with a 95 % interval from resampling.
* Together: the `top` features of largest positive attribution at once, and the features of the strongest paths, against random
  controls. Each control replaces every feature by another active one of the same layer, position and about the same size (one of
  the 5 nearest in |activation|), so that only the choice differs.
* Alone: faithfulness curves of the top features (faithful.py).
* Suspects: the features on which a gradient of the unfrozen model contradicts the graph most; measured for the cautions only, never
  counted in the agreement.

Reported apart: `frozen`, the worst disagreement inside the frozen model, where the edges must be exact (a check of the code and of
the files given, not of the circuit); `reselection`, what a change of the selected latents adds to pre-activations, which a
graph leaves out; `warnings`, reasons not to trust the graph (cautions.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from ...saes.errors import UserError
from ..graph import Graph, Node
from ..origin import same_origin
from ..parts import parts
from ..trace import prompt_tokens
from .cautions import agreement_cautions, control_cautions, curve_cautions, graph_cautions, shortcut_cautions
from .constrained import everything, freezing, hold
from .edits import Catalogue
from .effects import Measured, Outcome, direct_effects, is_gated, measure, total_effects
from .experiments import controls, on_paths, pairs, pick, suspects
from .faithful import curves
from .statistics import Agreement, agreement, normalised_error
from .validation import Pairs, Reselection, Validation

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

CHECKED = 8  # sources and targets looked at with everything frozen


def validate(
    graph: Graph,
    model: TransformerBridge,
    dictionaries: Any = None,
    edges: int = 64,
    seed: int = 0,
    *,
    top: int = 20,
    constrained: int | None = None,
    curve: bool = True,
) -> Validation:
    """Ablate features of `graph` in `model` and compare with the graph's predictions.

    `edges`: how many effects to measure one at a time, feature → targets and again feature → feature; `top`: how many
    features to ablate together; `constrained`: clamp that many blocks after each feature; `curve`: faithfulness curves too.
    Costs about edges + 80 forward passes of the prompt, batched, and one backward pass. Raises UserError when the model or
    a dictionary is not the one that the graph was traced with, or the graph has too few features.
    """
    catalogue = Catalogue(model, same_origin(graph, model, parts(dictionaries or [])))
    tokens = prompt_tokens(model, torch.tensor(graph.metadata["tokens"]))
    features = [i for i, node in enumerate(graph.nodes) if node.is_feature]
    if len(features) < 3 or edges < 3 or top < 1 or (constrained is not None and constrained < 0):
        raise UserError(
            f"expected at least 3 features, 3 edges, top 1 and constrained 0 or None; got {len(features)}, {edges}, {top} and "
            f"{constrained}; trace with a larger max_features, and not neurons='none'"
        )
    generator = torch.Generator().manual_seed(seed)
    outcome = Outcome(graph, catalogue)
    picked = pick(graph, features, edges, generator)
    best = sorted(features, key=lambda i: -graph.nodes[i].attribution)[:top]
    through = on_paths(graph)
    doubted = suspects(graph, catalogue, tokens, outcome, [i for i in features if i not in set(picked)])
    watched = pairs(graph, picked, features, edges, generator)
    targets = sorted({target for _, target in watched})
    random = [controls(catalogue, tokens, [graph.nodes[i] for i in group], generator) for group in (best, through)]
    groups = [*([i] for i in picked), *([i] for i in doubted), best, *([through] if through else [])]
    sets = [[graph.nodes[i] for i in group] for group in groups] + random[0] + random[1]
    seen = _measure(catalogue, tokens, outcome, sets, [graph.nodes[i] for i in targets], constrained)
    sizes = [len(picked), len(doubted), 1, int(bool(through)), len(random[0]), len(random[1])]
    single, doubt, together, along, random_top, random_path = (tuple(v.tolist()) for v in seen.value.split(sizes))
    says = [-node.attribution for node in graph.nodes]
    report = Validation(
        nodes=tuple(picked),
        predicted=tuple(says[i] for i in picked),
        measured=single,
        single=_agreed([says[i] for i in picked], single, generator),
        top=len(best),
        top_predicted=sum(says[i] for i in best),
        top_measured=together[0],
        control_measured=random_top,
        path_nodes=tuple(through),
        path_predicted=sum(says[i] for i in through),
        path_measured=sum(along),
        path_control_measured=random_path,
        pairs=_compared(graph, picked, targets, watched, seen, generator),
        reselection=_reselection(graph, picked, targets, watched, seen),
        suspects=tuple(doubted),
        suspect_predicted=tuple(says[i] for i in doubted),
        suspect_measured=doubt,
        frozen=_frozen(graph, catalogue, tokens, picked[:CHECKED], [target for _, target in watched][:CHECKED]),
        curve=curves(graph, catalogue, tokens, outcome, seed=seed) if curve else None,
        constrained=constrained,
        warnings=(),
    )
    return replace(report, warnings=_warnings(graph, report))


def _agreed(predicted: Sequence[float], measured: Sequence[float], generator: torch.Generator) -> Agreement:
    return agreement(
        torch.tensor(predicted, dtype=torch.float64), torch.tensor(measured, dtype=torch.float64), generator
    )


def _measure(
    catalogue: Catalogue,
    tokens: Int[Tensor, "token"],
    outcome: Outcome,
    sets: Sequence[Sequence[Node]],
    probes: Sequence[Node],
    constrained: int | None,
) -> Measured:
    """Effects of each set; with `constrained`, the blocks from a set's lowest on are clamped, sets of one start together."""
    if constrained is None:
        found = measure(catalogue, tokens, outcome, [[], *sets], probes)
        return Measured(*(column[1:] for column in found))
    layers = catalogue.model.cfg.n_layers
    starts = [min(node.layer for node in nodes) for nodes in sets]
    columns: list[list[Tensor]] = [[] for _ in Measured._fields]
    order = []
    for start in sorted(set(starts)):
        blocks = range(start, min(start + constrained + 1, layers))
        held = hold(catalogue, tokens, freezing(catalogue.model, constrained=blocks))
        mine = [i for i, first in enumerate(starts) if first == start]
        found = measure(catalogue, tokens, outcome, [[], *(sets[i] for i in mine)], probes, held=held)
        for column, part in zip(columns, found, strict=True):
            column.append(part[1:])
        order += mine
    back = torch.tensor(order).argsort()
    return Measured(*(torch.cat(column)[back] for column in columns))


def _compared(
    graph: Graph,
    picked: list[int],
    targets: list[int],
    watched: list[tuple[int, int]],
    seen: Measured,
    generator: torch.Generator,
) -> Pairs | None:
    if len(watched) < 3:
        return None
    direct, total = direct_effects(graph, picked), total_effects(graph, picked)
    run, probe = _places(picked, targets, watched)
    node = torch.tensor([target for _, target in watched])
    direct, total, measured = direct[node, run], total[node, run], seen.rows[run, probe]
    return Pairs(
        tuple(source for source, _ in watched),
        tuple(target for _, target in watched),
        tuple(direct.tolist()),
        tuple(total.tolist()),
        tuple(measured.tolist()),
        agreement(total, measured, generator),
        agreement(direct, measured, generator),
    )


def _places(picked: list[int], targets: list[int], watched: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Which run and which probe each pair is."""
    return (
        torch.tensor([picked.index(source) for source, _ in watched], dtype=torch.int64),
        torch.tensor([targets.index(target) for _, target in watched], dtype=torch.int64),
    )


def _reselection(
    graph: Graph, picked: list[int], targets: list[int], watched: list[tuple[int, int]], seen: Measured
) -> Reselection | None:
    latents = [pair for pair in watched if graph.nodes[pair[1]].kind == "latent"]
    if not latents:
        return None
    run, probe = _places(picked, targets, latents)
    change, pre = seen.activations[run, probe], seen.rows[run, probe]
    before = torch.tensor([graph.nodes[target].value for _, target in latents], dtype=torch.float64)
    dropped = (before + change).abs() <= 1e-6 * before.abs()
    return Reselection(
        len(latents),
        float(dropped.double().mean()),
        float(seen.replaced[run, probe].mean()),
        normalised_error(change, pre),
    )


def _frozen(
    graph: Graph,
    catalogue: Catalogue,
    tokens: Int[Tensor, "token"],
    sources: list[int],
    targets: list[int],
) -> float:
    """Everything held: the worst |measured - edge| over some sources, their targets and the weighted targets, as a share of the largest."""
    rule = graph.metadata.get("settings", {}).get("neurons", "half")
    nodes = graph.nodes
    known = [
        i for i in targets if nodes[i].kind == "latent" or rule != "rows" or not is_gated(catalogue, nodes[i].layer)
    ]
    held = hold(catalogue, tokens, everything(catalogue.model))
    sets = [[], *([nodes[i]] for i in sources)]
    outcome = Outcome(graph, catalogue, rule)
    found = measure(catalogue, tokens, outcome, sets, [nodes[i] for i in known], held=held, rule=rule)
    direct = direct_effects(graph, sources)
    ends = [i for i, node in enumerate(nodes) if node.weight]
    weights = torch.tensor([nodes[i].weight for i in ends], dtype=torch.float64)
    predicted = torch.cat([direct[known], (weights @ direct[ends])[None]])
    measured = torch.cat([found.rows[1:].T, found.value[1:][None]]) if known else found.value[1:][None]
    # An edge that pruning or max_edges folded into a leaf says nothing of its source.
    has_edge = torch.cat([direct[known] != 0, (direct[ends] != 0).all(0)[None]])
    if not has_edge.any():
        return 0.0
    measured, predicted = measured[has_edge], predicted[has_edge]
    return float((measured - predicted).abs().max() / predicted.abs().max().clamp_min(1e-30))


def _warnings(graph: Graph, report: Validation) -> tuple[str, ...]:
    found = graph_cautions(graph) + agreement_cautions("one at a time", report.single)
    if report.pairs:
        found += agreement_cautions("feature → feature", report.pairs.agreement)
    found += control_cautions(f"the top {report.top}", report.top_measured, report.control_measured)
    if report.path_nodes:
        found += control_cautions("the strongest paths' features", report.path_measured, report.path_control_measured)
    found += curve_cautions(report.curve) if report.curve else []
    found += shortcut_cautions(
        graph,
        report.nodes + report.suspects,
        report.predicted + report.suspect_predicted,
        report.measured + report.suspect_measured,
    )
    if report.frozen > 1e-2:
        found.append(
            f"the graph's edges are not this model's: with everything frozen they are off by {report.frozen:.1e}"
        )
    return tuple(found)
