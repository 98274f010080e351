"""What the page shows, as JSON-able dicts made from FeatureStores, Graphs and run folders. No model is needed.

Strings leave here ready to be shown (text.py), numbers rounded to what a reader can use, so that the front end only
places them. Each function is the answer to one path of api.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..circuits import Edges, Graph, Node
from ..saes import Feature, FeatureStore
from ..saes.latents.store import Example
from .circuit import STYLES, column_name
from .figures import training_figure
from .layout import draw
from .text import jsonable, number, readable, visible

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

DENSE = 0.1  # a latent that fires on more than this share of tokens is called dense
SINGLE_TOKEN = 0.4  # bits; one whose top examples have less token entropy is called single-token
SEARCHED = 3  # examples of a latent whose text the search box looks into
PARTNERS = 8  # incoming and outgoing edges listed for a drawn node


def store_payload(store: FeatureStore, latents: Sequence[int] | None = None) -> dict[str, Any]:
    """The table of latents, column by column, and the store's provenance.

    `latents` are the rows (default: all of them); `total` says how many there are.
    """
    rows = list(range(len(store))) if latents is None else list(latents)
    columns = {
        name: [number(value) for value in values[torch.tensor(rows, dtype=torch.int64)].tolist()]
        for name, values in store.columns.items()
    }
    return {
        "total": len(store),
        "latents": rows,
        "columns": columns,
        "provenance": jsonable(dict(store.manifest)),
        "labels": [None if (label := store.label(latent)) is None else readable(label) for latent in rows],
    }


def text_payload(store: FeatureStore, latents: Iterable[int]) -> dict[str, Any]:
    """For the search box: per latent its top examples around the token that fired, as one string."""
    return {
        "text": [" … ".join(_snippet(example) for example in store[latent].examples[:SEARCHED]) for latent in latents]
    }


def _snippet(example: Example, around: int = 8) -> str:
    near = example.tokens[max(example.focus - around, 0) : example.focus + around + 1]
    return readable("".join(near), 400)


def card_payload(store: FeatureStore, latent: int, neighbours: int = 8) -> dict[str, Any]:
    """One feature card: statistics, histogram, logits, examples, neighbours, warnings."""
    feature = store[latent]
    statistics = {
        name: number(getattr(feature, name))
        for name in ("count", "density", "max_value", "mean_value", "token_entropy", "context_entropy")
    }
    near = store.neighbours(latent, neighbours)
    return {
        "latent": int(latent),
        "label": None if feature.label is None else readable(feature.label),
        "statistics": statistics,
        "warnings": warnings(feature),
        "histogram": {
            "edges": [number(float(edge)) for edge in feature.histogram.edges],
            "counts": [int(count) for count in feature.histogram.counts],
        },
        "top_logits": _pairs(feature.top_logits),
        "bottom_logits": _pairs(feature.bottom_logits),
        "examples": [_example(example) for example in feature.examples],
        "neighbours": [
            {"latent": int(other), "cosine": number(cosine, 3), "label": _label(store, other)} for other, cosine in near
        ],
    }


def _label(store: FeatureStore, latent: int) -> str | None:
    label = store.label(latent)
    return None if label is None else readable(label)


def _pairs(pairs: Sequence[tuple[str, float]]) -> list[list[Any]]:
    return [[visible(token), number(value)] for token, value in pairs]


def _example(example: Example) -> dict[str, Any]:
    return {
        "document": int(example.document),
        "position": int(example.position),
        "value": number(example.value),
        "tokens": [readable(token) for token in example.tokens],
        "focus": int(example.focus),
        "values": [number(value, 3) for value in example.values],
    }


def warnings(feature: Feature) -> list[str]:
    """Why a latent's card should be read with care: dead, dense or single-token, each with its rule."""
    if not int(feature.count):
        return ["dead: it never fired in this text"]
    found = []
    if float(feature.density) > DENSE:
        found.append(f"dense: it fires on {float(feature.density):.0%} of all tokens (above {DENSE:.0%})")
    if float(feature.token_entropy) < SINGLE_TOKEN:
        found.append(
            f"single-token: token entropy of its top examples {float(feature.token_entropy):.2f} bits (below {SINGLE_TOKEN})"
        )
    return found


def graph_payload(graph: Graph, *, nodes: int = 120, edges: int = 400) -> dict[str, Any]:
    """A circuit: the drawn nodes with coordinates, drawn edges, each drawn node's strongest partners, scores and paths.

    A partner that is not drawn stands in `nodes` without coordinates.
    """
    drawing = draw(graph, nodes, edges)
    partners = _partners(graph, drawing.nodes)
    mentioned = {item for pair in partners.values() for side in pair for item, _ in side}
    paths = _paths(graph)
    mentioned |= {item for path in paths for item in path["nodes"]} | set(drawing.nodes)
    described = {item: _node(graph.nodes[item], float(drawing.influence[item])) for item in sorted(mentioned)}
    for item in drawing.nodes:
        incoming, outgoing = partners[item]
        described[item] |= {"x": drawing.x[item], "y": drawing.y[item], "incoming": incoming, "outgoing": outgoing}
    tokens = graph.metadata.get("token_strings", [])
    return {
        "prompt": readable(graph.metadata.get("prompt", ""), 400),
        "nodes": described,
        "edges": [[edge.target, edge.source, number(edge.weight), number(edge.strength, 3)] for edge in drawing.edges],
        "columns": [
            {"x": x, "width": width, "position": place, "token": "—" if place is None else column_name(tokens, place)}
            for x, width, place in drawing.columns
        ],
        "rows": [{"y": y, "label": label} for y, label in drawing.rows],
        "kinds": {kind: name for kind, (_, _, name) in STYLES.items()},
        "residual": number(graph.residual, 3),
        "paths": paths,
        **_scores(graph),
        "counts": {"nodes": len(graph.nodes), "edges": len(graph.edges.weight)},
        "metadata": jsonable({key: value for key, value in graph.metadata.items() if key != "neuronpedia"}),
    }


def _scores(graph: Graph) -> dict[str, Any]:
    scores = graph.scores()._asdict()
    shares = scores.pop("leaf_shares")
    return {
        "scores": {name: number(value) for name, value in scores.items()},
        "leaf_shares": {kind: number(share) for kind, share in shares.items()},
    }


def _node(node: Node, share: float) -> dict[str, Any]:
    return {
        "kind": node.kind,
        "layer": node.layer,
        "position": node.position,
        "index": node.index,
        "value": number(node.value),
        "label": visible(node.label, 80),
        "influence": number(share, 3),
        "attribution": number(node.attribution, 3),
    }


def _partners(graph: Graph, drawn: list[int]) -> dict[int, tuple[list[list[Any]], list[list[Any]]]]:
    """For each drawn node its heaviest incoming and outgoing edges as [partner, weight]; one pass over the edges."""
    wanted = torch.zeros(len(graph), dtype=torch.bool)
    wanted[drawn] = True
    out = Edges(*(column[wanted[graph.edges.source]] for column in graph.edges))
    order = out.source.argsort(stable=True)
    ids = torch.tensor(drawn, dtype=torch.int64)
    incoming = _heaviest(graph.edges.target, graph.edges.source, graph.edges.weight, ids)  # edges are ordered by target
    outgoing = _heaviest(out.source[order], out.target[order], out.weight[order], ids)
    return {item: (incoming[place], outgoing[place]) for place, item in enumerate(drawn)}


def _heaviest(mine: Tensor, partner: Tensor, weight: Tensor, ids: Tensor) -> list[list[list[Any]]]:
    starts, ends = torch.searchsorted(mine, ids), torch.searchsorted(mine, ids, right=True)
    lists = []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        best = start + weight[start:end].abs().argsort(descending=True, stable=True)[:PARTNERS]
        lists.append(
            [[item, number(value)] for item, value in zip(partner[best].tolist(), weight[best].tolist(), strict=True)]
        )
    return lists


def _paths(graph: Graph) -> list[dict[str, Any]]:
    if not graph.targets:
        return []
    return [
        {
            "nodes": list(path.nodes),
            "weights": [number(weight, 3) for weight in path.weights],
            "strength": number(path.strength, 3),
        }
        for path in graph.paths(5)
    ]


def run_payload(rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> dict[str, Any]:
    """A training run: its curves as a plotly figure, its last logged row, its config and evaluation."""
    return {
        "figure": figure_json(training_figure(rows)),
        "rows": len(rows),
        "about": jsonable(dict(about)),
        "last": jsonable(dict(rows[-1])) if rows else {},
    }


def figure_json(figure: Figure) -> dict[str, Any]:
    """A figure for the page, without plotly's template: the page brings its own colours, light or dark."""
    plain = json.loads(str(figure.to_json()))
    plain["layout"].pop("template", None)
    return plain
