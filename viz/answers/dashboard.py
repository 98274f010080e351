"""All open circuits at once: a row of numbers for each, and the features that recur in several of them."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from ...circuits import Graph
from ..graph_figures import dashboard_figure
from ..layout import flow
from ..text import number, readable, visible
from .registry import path
from .runs import figure_json

if TYPE_CHECKING:
    from ..things import Things

RECURRING = 200  # features that are listed
MEMBERS = 512  # of each graph, the most influential features that are compared


@path("graphs")
def graphs(things: Things) -> dict[str, Any]:
    """A row for each circuit, and what recurs.

    recurring: {kind, layer, index, label, graphs: [[graph, node, influence], …]} of features that are in at least two, those in
    most graphs first, then by influence.
    """
    return {
        "graphs": [graph_row(name, graph) for name, graph in things.graphs.items()],
        "recurring": recurring(list(things.graphs.values())),
    }


@path("graphs/figures/dashboard")
def figure(things: Things) -> dict[str, Any]:
    """All circuits in one plotly figure."""
    return figure_json(dashboard_figure(things.graphs))


def graph_row(name: str, graph: Graph) -> dict[str, Any]:
    """One circuit in numbers: its heaviest target, its size, residual, scores, leaf shares, what its file says of validation."""
    scores = graph.scores()._asdict()
    shares = scores.pop("leaf_shares")
    target = max(graph.targets, key=lambda item: graph.nodes[item].weight, default=None)
    about = graph.metadata.get("model")
    return {
        "name": readable(name),
        "prompt": readable(graph.metadata.get("prompt", ""), 400),
        "model": readable(about.get("name", "")) if isinstance(about, dict) else "",
        "target": None if target is None else visible(graph.nodes[target].label, 40),
        "weight": None if target is None else number(graph.nodes[target].weight, 3),
        "features": sum(one.is_feature for one in graph.nodes),
        "nodes": len(graph.nodes),
        "edges": len(graph.edges.weight),
        "residual": number(graph.residual, 3),
        **{key: number(value, 3) for key, value in scores.items()},
        "leaf_shares": {kind: number(share, 3) for kind, share in shares.items()},
        "validation": validation(graph),
    }


def validation(graph: Graph) -> dict[str, Any] | None:
    """Spearman's correlation, its interval and the number of warnings, where the graph's file keeps a validation's report."""
    report = graph.metadata.get("validation")
    if not isinstance(report, dict):
        return None
    single, interval = report.get("single"), report.get("interval")
    spearman = report.get("spearman", single.get("spearman") if isinstance(single, dict) else None)
    return {
        "spearman": number(spearman, 3),
        "interval": [number(end, 3) for end in interval[:2]] if isinstance(interval, list) else [],
        "warnings": len(report["warnings"]) if isinstance(report.get("warnings"), list) else 0,
    }


def recurring(graphs: list[Graph]) -> list[dict[str, Any]]:
    """Features that are among the most influential of at least two graphs.

    A latent is the same when layer, index, site and its dictionary are; a neuron when layer, index and model are. Several
    positions of one graph count once, with the most influential as its node.
    """
    seen: dict[tuple[Any, ...], dict[int, tuple[float, int]]] = defaultdict(dict)
    for place, graph in enumerate(graphs):
        through = flow(graph)
        features = [item for item in graph.of_kind("latent", "neuron").tolist() if through[item] > 0]
        features.sort(key=lambda item: -float(through[item]))
        for item in features[:MEMBERS]:
            seen[_identity(graph, item)].setdefault(place, (float(through[item]), item))
    shared = [(key, found) for key, found in seen.items() if len(found) > 1]
    shared.sort(key=lambda pair: (-len(pair[1]), -math.fsum(share for share, _ in pair[1].values())))
    return [_shared(graphs, found) for _, found in shared[:RECURRING]]


def _shared(graphs: list[Graph], found: dict[int, tuple[float, int]]) -> dict[str, Any]:
    first = min(found)
    one = graphs[first].nodes[found[first][1]]
    return {
        "kind": readable(one.kind, 40),
        "layer": one.layer,
        "index": one.index,
        "label": visible(one.label, 80),
        "graphs": [[place, item, number(share, 3)] for place, (share, item) in sorted(found.items())],
    }


def _identity(graph: Graph, item: int) -> tuple[Any, ...]:
    one = graph.nodes[item]
    if one.kind == "neuron":
        model = graph.metadata.get("model")
        model = model if isinstance(model, dict) else {}
        return one.kind, one.layer, one.index, str(model.get("fingerprint", model.get("name", "")))
    references = graph.metadata.get("dictionaries")
    known = [each for each in references if isinstance(each, dict)] if isinstance(references, list) else []
    made = next((str(each.get("fingerprint")) for each in known if each.get("site") == one.site), "")
    return one.kind, one.layer, one.index, one.site, made
