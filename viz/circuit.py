"""circuit_figure: an attribution graph in plotly, layer by token.

One column a token, one row a layer, embeddings below, targets on top; edges red where they push the target up and blue
where they push it down, as wide as the influence that they carry (layout.py says what is drawn and why). The slider
is the share of influence on the drawn nodes that stays: what falls out becomes faint, its edges go. Hovering a node tells what it
is, what it is worth, its strongest drawn sources, and, where a FeatureStore of its dictionary is given, the
text that excites it most.

Every string that came from a model, a corpus or a file passes `visible`/`readable` and `plotly_text` first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..circuits import Graph, Node
from ..circuits.graph import TARGETS
from ..saes import FeatureStore
from .figures import BLUE, GREY, RED
from .layout import Drawing, draw, token_strings
from .text import number, plotly_text, readable, visible

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

STYLES = {  # kind → (colour, plotly symbol, name in the legend)
    "logit": ("#7a4fa3", "square", "target"),
    "direction": ("#7a4fa3", "star", "target inside the model"),
    "latent": ("#2a9d78", "circle", "latent"),
    "neuron": ("#d08a1d", "diamond", "MLP neuron"),
    "gate": ("#d9b26f", "diamond-open", "gate of a neuron"),
    "up": ("#d9b26f", "diamond-tall-open", "up projection of a neuron"),
    "head": ("#2f6fb3", "triangle-right", "attention head"),
    "mlp": ("#d08a1d", "square-open", "whole MLP"),
    "error": ("#8a8f98", "x-thin-open", "reconstruction error"),
    "rest": ("#8a8f98", "circle-open", "rest"),
    "token": ("#3b4252", "square", "token"),
    "position": ("#5b7083", "triangle-up", "position"),
    "first": ("#5b7083", "hexagon", "first token"),
    "bias": ("#b3a394", "triangle-down", "bias"),
}
SHARES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)  # stops of the slider
FAINT = 0.08  # opacity of a node that the slider left out
SPOKEN = 0.2  # a target is named in the picture from this share of the largest one's influence on
_WIDTHS = (0.6, 1.4, 2.6, 4.5)  # px; edges fall into four classes of strength relative to the strongest
EXAMPLES, AROUND, PARTNERS = 3, 6, 3  # of a hover: examples, tokens before the one that fires, strongest sources


def circuit_figure(graph: Graph, *, nodes: int = 120, edges: int = 400, stores: Sequence[FeatureStore] = ()) -> Figure:
    """Draw an attribution graph, layer by token: its `nodes` most influential nodes, the `edges` strongest edges among them.

    `stores`: FeatureStores of the graph's dictionaries, for the examples in the hover. The title has the prompt, the ledger's
    residual and the scores.
    """
    import plotly.graph_objects as go

    drawing = draw(graph, nodes, edges)
    rank = _cumulative(drawing)
    figure = go.Figure([*_edge_traces(drawing), *_node_traces(graph, drawing, stores)])
    tokens = token_strings(graph)
    columns = [(centre, "" if place is None else column_name(tokens, place)) for centre, _, place in drawing.columns]
    figure.update_layout(
        title={
            "text": _title(graph),
            "font": {"size": 14},
            "yref": "container",
            "y": 1,
            "yanchor": "top",
            "pad": {"t": 12},
        },
        template="plotly_white",
        hovermode="closest",
        height=330 + 46 * len(drawing.rows),
        margin={"l": 80, "r": 20, "t": 130, "b": 130},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hoverlabel={"align": "left"},
        xaxis={
            "tickvals": [centre for centre, _ in columns],
            "zeroline": False,
            "showgrid": False,
            "ticktext": [plotly_text(name) for _, name in columns],
        },
        yaxis={
            "tickvals": [row for row, _ in drawing.rows],
            "zeroline": False,
            "ticktext": [name for _, name in drawing.rows],
        },
        sliders=[_slider(drawing, rank, list(figure.data))] if drawing.nodes else [],
    )
    return figure


def column_name(tokens: Sequence[str], place: int) -> str:
    """The token over a column, whitespace visible; its number when the graph keeps no token strings."""
    return visible(tokens[place], 24) if place < len(tokens) else f"#{place}"


def _cumulative(drawing: Drawing) -> dict[int, float]:
    """For each drawn node, the share of influence of all that are at least as influential; targets, first of all, 0."""
    order = sorted(drawing.nodes, key=lambda item: -float(drawing.influence[item]))
    sizes = torch.tensor([float(drawing.influence[item]) for item in order], dtype=torch.float64)
    before = sizes.cumsum(0) - sizes
    total = max(float(sizes.sum()), 1e-12)
    top = max((drawing.y[item] for item in drawing.nodes), default=0.0)
    return {
        item: 0.0 if drawing.y[item] == top else float(share) / total for item, share in zip(order, before, strict=True)
    }


def _slider(drawing: Drawing, rank: dict[int, float], traces: Sequence[Any]) -> dict[str, Any]:
    """Steps that fade the nodes beyond a share of influence and drop their edges."""
    lines = [index for index, trace in enumerate(traces) if trace.mode == "lines"]
    marks = [index for index in range(len(traces)) if index not in lines]
    steps = []
    for share in SHARES:
        kept = {item for item in drawing.nodes if rank[item] < share}
        points = _lines(drawing, kept)
        args = {
            "x": [points.get(traces[index].meta, ([], []))[0] for index in lines] + [traces[i].x for i in marks],
            "y": [points.get(traces[index].meta, ([], []))[1] for index in lines] + [traces[i].y for i in marks],
            "marker.opacity": [1.0] * len(lines)
            + [[1.0 if item in kept else FAINT for item in traces[index].customdata] for index in marks],
        }
        steps.append({"method": "restyle", "args": [args, [*lines, *marks]], "label": f"{share:g}"})
    return {
        "active": len(SHARES) - 1,
        "currentvalue": {"prefix": "share of influence shown: "},
        "pad": {"t": 45},
        "steps": steps,
    }


def _lines(drawing: Drawing, kept: set[int]) -> dict[str, tuple[list[Any], list[Any]]]:
    """Edges among `kept` nodes by class ("raises 2"), as plotly's x and y with gaps."""
    lines: dict[str, tuple[list[Any], list[Any]]] = {}
    for target, source, weight, strength in drawing.edges:
        if target in kept and source in kept:
            width = min(int(4 * math.sqrt(strength)), 3)
            xs, ys = lines.setdefault(f"{'raises' if weight > 0 else 'lowers'} {width}", ([], []))
            xs += [drawing.x[source], drawing.x[target], None]
            ys += [drawing.y[source], drawing.y[target], None]
    return lines


def _edge_traces(drawing: Drawing) -> list[Any]:
    import plotly.graph_objects as go

    traces = []
    for name, (xs, ys) in sorted(_lines(drawing, set(drawing.nodes)).items(), key=lambda item: item[0].split()[1]):
        sign, width = name.split()[0], int(name.split()[1])
        traces.append(
            go.Scatter(
                x=xs,
                y=ys,
                mode="lines",
                hoverinfo="skip",
                showlegend=False,
                opacity=0.25 + 0.15 * width,
                name=sign,
                meta=name,
                line={"color": RED if sign == "raises" else BLUE, "width": _WIDTHS[width]},
            )
        )
    return traces


def _node_traces(graph: Graph, drawing: Drawing, stores: Sequence[FeatureStore]) -> list[Any]:
    import plotly.graph_objects as go

    by_site = _stores_by_site(graph, stores)
    traces = []
    for kind in dict.fromkeys(graph.nodes[item].kind for item in drawing.nodes):
        colour, symbol, name = STYLES.get(kind, (GREY, "circle", plotly_text(readable(kind))))
        here = [item for item in drawing.nodes if graph.nodes[item].kind == kind]
        texts = _texts(graph, drawing, here)
        traces.append(
            go.Scatter(
                x=[drawing.x[item] for item in here],
                y=[drawing.y[item] for item in here],
                name=name,
                mode="markers+text" if kind in TARGETS else "markers",
                textposition="top center",
                text=[plotly_text(text) for text in texts],
                customdata=here,
                hovertext=[_hover(graph, drawing, item, by_site) for item in here],
                hoverinfo="text",
                marker={
                    "color": colour,
                    "symbol": symbol,
                    "line": {"width": 1, "color": colour},
                    "size": [8 + 14 * math.sqrt(min(float(drawing.influence[item]), 1.0)) for item in here],
                },
            )
        )
    return traces


def _texts(graph: Graph, drawing: Drawing, here: list[int]) -> list[str]:
    """Labels beside the nodes; targets of little weight would write over each other, and are told by hovering."""
    largest = max(float(drawing.influence[item]) for item in here)
    named = [item for item in here if float(drawing.influence[item]) >= SPOKEN * largest]
    return [visible(graph.nodes[item].label, 24) if item in named[:3] else "" for item in here]


def _stores_by_site(graph: Graph, stores: Sequence[FeatureStore]) -> dict[str, FeatureStore]:
    """The store of each dictionary's read site: known by the dictionary's fingerprint, so never another's examples."""
    opened = {store.manifest["dictionary"]["fingerprint"]: store for store in stores}
    known = graph.metadata.get("dictionaries", [])
    return {each["site"]: opened[each["fingerprint"]] for each in known if each.get("fingerprint") in opened}


def _hover(graph: Graph, drawing: Drawing, item: int, stores: dict[str, FeatureStore]) -> str:
    node = graph.nodes[item]
    where = [f"layer {node.layer}"] if node.layer >= 0 and node.kind != "logit" else []
    where += [f"position {node.position}"] if node.position >= 0 else []
    lines = [
        f"<b>{plotly_text(visible(node.label))}</b>",
        ", ".join([STYLES.get(node.kind, ("", "", plotly_text(readable(node.kind))))[2], *where]),
        f"value {number(node.value)}",
        f"influence on the targets {float(drawing.influence[item]):.3f}",
    ]
    incoming = sorted((edge for edge in drawing.edges if edge.target == item), key=lambda edge: -abs(edge.weight))
    for edge in incoming[:PARTNERS]:
        lines.append(f"{edge.weight:+.3g} from {plotly_text(visible(graph.nodes[edge.source].label, 40))}")
    return "<br>".join(lines + _examples(node, stores))


def _examples(node: Node, stores: dict[str, FeatureStore]) -> list[str]:
    """The text that excites a latent most, a line each; nothing without its store."""
    store = stores.get(node.site) if node.kind == "latent" else None
    if store is None or not 0 <= node.index < len(store):
        return []
    lines = []
    for example in store[node.index].examples[:EXAMPLES]:
        before = "".join(example.tokens[max(0, example.focus - AROUND) : example.focus])
        fires = example.tokens[example.focus]
        lines.append(
            f"{number(example.value, 3)}: {plotly_text(readable(before))}<b>{plotly_text(visible(fires, 24))}</b>"
        )
    return lines


def _title(graph: Graph) -> str:
    scores = graph.scores()
    prompt = plotly_text(readable(graph.metadata.get("prompt", ""), 90))
    return (
        f"<b>{prompt}</b><br>{plotly_text(readable(graph.closure))} · replacement {scores.replacement:.2f} · "
        f"completeness {scores.completeness:.2f}"
    )
