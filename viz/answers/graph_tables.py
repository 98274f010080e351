"""What a circuit's file says beyond its edges: parts through attention heads, Neuronpedia's JSON, plotly figures."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from ...circuits import Graph
from ...saes.errors import UserError
from ..graph_figures import ledger_figure, paths_figure, scores_figure
from ..layout import flow
from ..text import number, readable
from .graph_nodes import described, graph_at
from .registry import path
from .runs import figure_json

if TYPE_CHECKING:
    from ..things import Things

FIGURES = {"scores": scores_figure, "paths": paths_figure, "ledger": ledger_figure}
PARTS = 6  # heads named for one edge
SPLIT = 400  # edges whose split is sent, those of largest parts


class _Split(NamedTuple):
    target: int
    source: int
    layer: int
    heads: list[float]
    bypass: float


@path(r"graphs/(\d{1,6})/neuronpedia")
def neuronpedia(things: Things, place: int) -> dict[str, Any]:
    """The circuit as the JSON that Neuronpedia and circuit-tracer's viewer read."""
    return graph_at(things, place).to_neuronpedia()


@path(r"graphs/(\d{1,6})/figures/(scores|paths|ledger)")
def figure(things: Things, place: int, name: str) -> dict[str, Any]:
    """One of a circuit's plotly figures; `why` says why there is none."""
    graph = graph_at(things, place)
    try:
        return figure_json(FIGURES[name](graph))
    except UserError as error:
        return {"why": readable(error, 400)}


@path(r"graphs/(\d{1,6})/figures/ledger/(\d{1,9})")
def ledger(things: Things, place: int, target: int) -> dict[str, Any]:
    """The ledger of any node that has a row."""
    try:
        return figure_json(ledger_figure(graph_at(things, place), target))
    except UserError as error:
        return {"why": readable(error, 400)}


@path(r"graphs/(\d{1,6})/heads")
def heads(things: Things, place: int) -> dict[str, Any]:
    """The edges split over heads (`attach_heads`): each head's sum over the listed edges, and each edge's largest parts.

    heads: {layer, head, sum, absolute, edges, target, source, weight}, the last three of its largest part; edges: {target,
    source, layer, parts: [[head, weight], …], others, bypass}, of which parts, others and bypass sum to the edge.
    """
    graph = graph_at(things, place)
    splits = [split for entry in _list(graph.metadata.get("heads")) if (split := _split(graph, entry))]
    table: dict[tuple[int, int], list[tuple[float, int, int]]] = defaultdict(list)
    for split in splits:
        for head, weight in enumerate(split.heads):
            if weight:
                table[split.layer, head].append((weight, split.target, split.source))
    rows = [_head(layer, head, parts) for (layer, head), parts in table.items()]
    rows.sort(key=lambda row: -row["absolute"])
    edges = [_edge(split) for split in splits[:SPLIT]]
    mentioned = {end for each in edges + rows for end in (each["target"], each["source"])}
    return {
        "total": len(splits),
        "heads": rows,
        "edges": edges,
        "nodes": described(things, graph, mentioned, flow(graph)),
    }


def _head(layer: int, head: int, parts: list[tuple[float, int, int]]) -> dict[str, Any]:
    weight, target, source = max(parts, key=lambda part: abs(part[0]))
    return {
        "layer": layer,
        "head": head,
        "sum": number(sum(part[0] for part in parts)),
        "absolute": number(sum(abs(part[0]) for part in parts)),
        "edges": len(parts),
        "target": target,
        "source": source,
        "weight": number(weight),
    }


def _edge(split: _Split) -> dict[str, Any]:
    order = sorted(range(len(split.heads)), key=lambda head: -abs(split.heads[head]))
    return {
        "target": split.target,
        "source": split.source,
        "layer": split.layer,
        "parts": [[head, number(split.heads[head])] for head in order[:PARTS] if split.heads[head]],
        "others": number(sum(split.heads[head] for head in order[PARTS:])),
        "bypass": number(split.bypass),
    }


def _split(graph: Graph, entry: Any) -> _Split | None:
    """One entry of the metadata, if it has the form that `attach_heads` writes: a stranger's file can hold anything."""
    if not isinstance(entry, dict):
        return None
    target, source, layer = (entry.get(name) for name in ("target", "source", "layer"))
    heads, bypass = _list(entry.get("heads")), entry.get("bypass", 0.0)
    if type(target) is not int or type(source) is not int or type(layer) is not int:
        return None
    if not (0 <= target < len(graph) and 0 <= source < len(graph) and all(map(_is_finite, [*heads, bypass]))):
        return None
    return _Split(target, source, layer, [float(part) for part in heads], float(bypass))


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e300 < value < 1e300  # NaN is neither


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
