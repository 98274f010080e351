"""Plotly figures as pure functions: data in, `plotly.graph_objects.Figure` out; no file, no model, no state.

* `circuit_figure(graph)`: one column a token, one row a layer, embeddings below, targets on top; edges red where they
  push the target up and blue where they push it down, as wide
  as the influence that they carry. See layout.py for what is drawn.
* `feature_figure(feature)`: how often and how strongly a latent fires, and which tokens its decoder row promotes.
* `training_figure(rows)`: the curves of a training run against tokens seen.

Every string that came from a model, a corpus or a file passes `visible`/`readable` and `plotly_text` first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..circuits import Graph
from ..saes import Feature
from .layout import Drawing, draw
from .text import number, plotly_text, readable, visible

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

RED, BLUE, GREY = "#c4463a", "#2f6fb3", "#8a8f98"
STYLES = {  # kind → (colour, plotly symbol, name in the legend)
    "logit": ("#7a4fa3", "square", "target"),
    "latent": ("#2a9d78", "circle", "latent"),
    "neuron": ("#d08a1d", "diamond", "MLP neuron"),
    "error": ("#8a8f98", "x-thin-open", "reconstruction error"),
    "rest": ("#8a8f98", "circle-open", "rest"),
    "token": ("#3b4252", "square", "token"),
    "position": ("#5b7083", "triangle-up", "position"),
    "first": ("#5b7083", "hexagon", "first token"),
    "bias": ("#b3a394", "triangle-down", "bias"),
}
_WIDTHS = (0.6, 1.4, 2.6, 4.5)  # px; edges fall into four classes of strength relative to the strongest
CURVES = {
    "loss": "loss",
    "fvu": "variance unexplained (FVU)",
    "l0": "active latents a token (L0)",
    "dead_share": "share of dead latents",
    "tokens_per_s": "tokens per second",
}


def circuit_figure(graph: Graph, *, nodes: int = 120, edges: int = 400) -> Figure:
    """Draw an attribution graph, layer by token: its `nodes` most influential nodes, the `edges` strongest edges among them.

    Hover shows kind, label, activation and share of influence; the title has the prompt, the ledger's residual and
    the scores.
    """
    import plotly.graph_objects as go

    drawing = draw(graph, nodes, edges)
    figure = go.Figure([*_edge_traces(drawing), *_node_traces(graph, drawing)])
    tokens = graph.metadata.get("token_strings", [])
    columns = [(centre, "" if place is None else column_name(tokens, place)) for centre, _, place in drawing.columns]
    figure.update_layout(
        title={"text": _title(graph), "font": {"size": 14}},
        template="plotly_white",
        hovermode="closest",
        height=220 + 46 * len(drawing.rows),
        margin={"l": 80, "r": 20, "t": 90, "b": 60},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
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
    )
    return figure


def column_name(tokens: Sequence[str], place: int) -> str:
    """The token over a column, whitespace visible; its number when the graph keeps no token strings."""
    return visible(tokens[place], 24) if place < len(tokens) else f"#{place}"


def _edge_traces(drawing: Drawing) -> list[Any]:
    import plotly.graph_objects as go

    lines: dict[tuple[bool, int], tuple[list[Any], list[Any]]] = {}
    for target, source, weight, strength in drawing.edges:
        width = min(int(4 * math.sqrt(strength)), 3)
        xs, ys = lines.setdefault((weight > 0, width), ([], []))
        xs += [drawing.x[source], drawing.x[target], None]
        ys += [drawing.y[source], drawing.y[target], None]
    return [
        go.Scatter(
            x=xs,
            y=ys,
            mode="lines",
            hoverinfo="skip",
            showlegend=False,
            opacity=0.25 + 0.15 * width,
            name="raises" if raises else "lowers",
            line={"color": RED if raises else BLUE, "width": _WIDTHS[width]},
        )
        for (raises, width), (xs, ys) in sorted(lines.items(), key=lambda item: item[0][1])
    ]


def _node_traces(graph: Graph, drawing: Drawing) -> list[Any]:
    import plotly.graph_objects as go

    traces = []
    for kind in dict.fromkeys(graph.nodes[item].kind for item in drawing.nodes):
        colour, symbol, name = STYLES.get(kind, (GREY, "circle", plotly_text(readable(kind))))
        here = [item for item in drawing.nodes if graph.nodes[item].kind == kind]
        texts = [visible(graph.nodes[item].label, 24) for item in here]
        traces.append(
            go.Scatter(
                x=[drawing.x[item] for item in here],
                y=[drawing.y[item] for item in here],
                name=name,
                mode="markers+text" if kind == "logit" else "markers",
                textposition="top center",
                text=[plotly_text(text) for text in texts],
                customdata=here,
                hovertext=[_hover(graph, item, float(drawing.influence[item])) for item in here],
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


def _hover(graph: Graph, item: int, share: float) -> str:
    node = graph.nodes[item]
    where = [f"layer {node.layer}"] if node.layer >= 0 and node.kind != "logit" else []
    where += [f"position {node.position}"] if node.position >= 0 else []
    lines = [
        f"<b>{plotly_text(visible(node.label))}</b>",
        ", ".join([STYLES.get(node.kind, ("", "", node.kind))[2], *where]),
        f"value {number(node.value)}",
        f"influence on the targets {share:.3f}",
    ]
    return "<br>".join(lines)


def _title(graph: Graph) -> str:
    scores = graph.scores()
    prompt = plotly_text(readable(graph.metadata.get("prompt", ""), 90))
    return (
        f"<b>{prompt}</b><br>residual {graph.residual:.1e} · replacement {scores.replacement:.2f} · "
        f"completeness {scores.completeness:.2f}"
    )


def feature_figure(feature: Feature) -> Figure:
    """One latent: its activation histogram (log-spaced bins) above the tokens that it promotes and demotes most."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=2,
        cols=2,
        specs=[[{"colspan": 2}, None], [{}, {}]],
        vertical_spacing=0.16,
        horizontal_spacing=0.24,
        subplot_titles=("activations", "lowest logits", "highest logits"),
    )
    edges, counts = (
        [float(edge) for edge in feature.histogram.edges],
        [int(count) for count in feature.histogram.counts],
    )
    bins = list(zip(edges[:-1], edges[1:], counts, strict=True))
    centres = [math.sqrt(low * high) if low > 0 else high / 2 for low, high, _ in bins]
    figure.add_trace(
        go.Bar(
            x=centres,
            y=counts,
            width=[high - low for low, high, _ in bins],
            marker_color=RED,
            hovertext=[f"{low:.3g} to {high:.3g}: {count}" for low, high, count in bins],
            hoverinfo="text",
            showlegend=False,
        ),
        row=1,
        col=1,
    )
    for column, pairs, colour in ((1, feature.bottom_logits, BLUE), (2, feature.top_logits, RED)):
        names = [
            f"{plotly_text(visible(token, 24))}<span style='font-size:1px'> {rank}</span>"
            for rank, (token, _) in enumerate(pairs)
        ]  # equal names would share one bar
        figure.add_trace(
            go.Bar(
                y=names, x=[number(value) for _, value in pairs], orientation="h", marker_color=colour, showlegend=False
            ),
            row=2,
            col=column,
        )
        figure.update_yaxes(autorange="reversed", row=2, col=column)
    figure.update_xaxes(type="log", row=1, col=1)
    figure.update_layout(
        template="plotly_white",
        height=560,
        margin={"l": 90, "r": 20, "t": 80, "b": 40},
        title={"text": _feature_title(feature), "font": {"size": 14}},
    )
    return figure


def _feature_title(feature: Feature) -> str:
    label = f" · {plotly_text(readable(feature.label))}" if feature.label else ""
    return (
        f"<b>latent {int(feature.latent)}</b>{label}<br>density {float(feature.density):.2e}, "
        f"{int(feature.count)} activations, largest {float(feature.max_value):.3g}"
    )


def training_figure(rows: Sequence[Mapping[str, Any]], *, name: str = "") -> Figure:
    """The curves of a run as small multiples over tokens seen; `rows` are the lines of a `metrics.jsonl`.

    A curve that no row has is left out; values that are not finite leave a gap.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    curves = [key for key in CURVES if any(key in row for row in rows)] or ["loss"]
    columns = min(len(curves), 3)
    figure = make_subplots(
        rows=math.ceil(len(curves) / columns),
        cols=columns,
        vertical_spacing=0.16,
        horizontal_spacing=0.08,
        subplot_titles=[CURVES[key] for key in curves],
    )
    tokens = [number(row.get("tokens"), 9) for row in rows]
    for place, key in enumerate(curves):
        row, col = place // columns + 1, place % columns + 1
        values = [number(row.get(key), 6) for row in rows]
        figure.add_trace(
            go.Scatter(
                x=tokens,
                y=values,
                mode="lines+markers" if len(rows) < 40 else "lines",
                marker={"size": 4},
                name=key,
                line={"color": BLUE, "width": 2},
                showlegend=False,
            ),
            row=row,
            col=col,
        )
        if key in ("fvu", "dead_share", "tokens_per_s", "l0"):
            figure.update_yaxes(rangemode="tozero", row=row, col=col)
    figure.update_annotations(font_size=13)
    figure.update_layout(
        template="plotly_white",
        height=250 * math.ceil(len(curves) / columns) + 60,
        margin={"l": 50, "r": 16, "t": 70 if name else 40, "b": 40},
        title={"text": plotly_text(readable(name)), "font": {"size": 14}} if name else None,
    )
    return figure
