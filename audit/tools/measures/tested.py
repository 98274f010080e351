"""Attribution put to the test: what is listed taken away in the real model, all together, beside as many others that are as active.

An attribution is a prediction, and a list of the largest ones is chosen by it: some are large for any token. So

    together      what the target loses without those listed that speak for it (where none does: against it), as predicted and as
                  measured, and what it loses without random sets of the same size: others of the same site and about the same activation
    other_tokens  a latent's mean |attribution| to other tokens that might come next: what it moves whatever is asked about
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ....circuits import Graph, rank_features
from ....circuits.experiment.edits import Catalogue
from ....circuits.experiment.effects import Outcome, measure
from ....circuits.experiment.experiments import controls
from ....circuits.experiment.interventions import run_edited
from ....circuits.prompts.rank import PromptFeatures
from ....circuits.prompts.targets import target_value
from ....circuits.trace import prompt_tokens
from .ablating import AT_ONCE, active_draws, edits_of
from .prompts import Seen, latents_on

if TYPE_CHECKING:
    from ..session import Session

CONTROLS, OTHERS, LIKELY = 8, 4, 100  # random sets of latents, other targets, how many tokens these are drawn from
NODE_CONTROLS = 5  # random sets of nodes (circuits/experiment/experiments.py)
RUNS = 2 + CONTROLS + 2 * OTHERS
GRAPH_RUNS = 2 + NODE_CONTROLS


def beside(measured: float, others: Sequence[float]) -> dict[str, Any]:
    """The controls of one measurement, and whether it exceeds them all."""
    if not others:
        return {"controls": 0}
    most = max(abs(value) for value in others)
    return {
        "controls": len(others),
        "control_low": min(others),
        "control_high": max(others),
        "beyond_controls": abs(measured) > most,
    }


def latents_together(
    session: Session,
    name: str,
    found: Seen,
    chosen: Bool[Tensor, "token"],
    target: tuple[int, ...],
    attributions: Mapping[int, float],
) -> dict[str, Any]:
    """Take away latents of `attributions` at the chosen tokens, as many of the first as there are others that fire there."""
    part = session.workspace.part(name)
    on = latents_on(found.codes, chosen)
    side, ours = one_side(attributions)
    latents = ours[: max(len(on.latents) // 2, 1)]
    draws = active_draws(on, latents, CONTROLS, torch.Generator().manual_seed(session.seed))
    model, places = session.workspace.model(), chosen.nonzero()[:, 0].tolist()
    catalogue, ids = Catalogue(model, part), prompt_tokens(model, found.ids)
    sets, values = [[], latents, *draws], []
    for start in range(0, len(sets), AT_ONCE):
        edits = [edits_of(part, each, places) for each in sets[start : start + AT_ONCE]]
        values += [float(target_value(target, row)) for row in run_edited(catalogue, ids, edits).final]
    measured, *others = (value - values[0] for value in values[1:])
    predicted = -sum(attributions[latent] for latent in latents)
    return {
        "latents": len(latents),
        "speak": side,
        "predicted": predicted,
        "measured": measured,
        **beside(measured, others),
    }


def to_other_tokens(
    session: Session, name: str, ranked: PromptFeatures, chosen: Bool[Tensor, "token"]
) -> dict[int, float]:
    """The mean |attribution| of each latent to OTHERS other targets of the same form, of the LIKELY likeliest tokens."""
    ids = [each.id for each in ranked.next_tokens if each.id not in ranked.target_ids]
    size = len(ranked.target_ids)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(session.seed)).tolist()
    drawn = [ids[place] for place in order[: OTHERS * size]]
    targets = [tuple(drawn[start : start + size]) for start in range(0, len(drawn) - size + 1, size)]
    model, part = session.workspace.model(), session.workspace.part(name)
    sums: dict[int, float] = {}
    for target in targets:
        wanted: Any = target if size == 2 else target[0]
        other = rank_features(model, part, ranked.ids, target=wanted, rank="attribution", top=part.latents)
        for latent, value in summed(other, chosen).items():
            sums[latent] = sums.get(latent, 0.0) + abs(value) / len(targets)
    return sums


def summed(ranked: PromptFeatures, chosen: Bool[Tensor, "token"]) -> dict[int, float]:
    """The attribution of each latent over the chosen tokens."""
    sums: dict[int, float] = {}
    for place in chosen.nonzero()[:, 0].tolist():
        for row in ranked.features[place]:
            sums[row.latent] = sums.get(row.latent, 0.0) + row.attribution
    return sums


def one_side(attributions: Mapping[int, float]) -> tuple[str, list[int]]:
    """Those that speak for the target, or, where there are none, against it: together the two would hide each other."""
    ours = [each for each, value in attributions.items() if value > 0]
    return ("for", ours) if ours else ("against", list(attributions))


def nodes_together(session: Session, name: str, graph: Graph, places: Sequence[int]) -> dict[str, Any]:
    """Take away nodes of a graph, all together."""
    model = session.workspace.model()
    catalogue = Catalogue(model, session.workspace.part(name))
    ids = prompt_tokens(model, torch.tensor(graph.metadata["tokens"]))
    side, ours = one_side({place: graph.nodes[place].attribution for place in places})
    nodes = [graph.nodes[place] for place in ours]
    draws = controls(catalogue, ids, nodes, torch.Generator().manual_seed(session.seed))
    measured, *others = measure(catalogue, ids, Outcome(graph, catalogue), [[], nodes, *draws]).value[1:].tolist()
    predicted = -sum(node.attribution for node in nodes)
    return {
        "nodes": len(nodes),
        "speak": side,
        "predicted": predicted,
        "measured": measured,
        **beside(measured, others),
    }
