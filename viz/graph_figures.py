"""Plotly figures of circuits: scores, strongest paths, ledgers, and many graphs side by side. Data in, Figure out.

* `scores_figure(graph)`: replacement and completeness, strict and compatible, and where the influence ends.
* `paths_figure(graph)`: the strongest paths from tokens to a target as flows (Sankey).
* `ledger_figure(graph, target)`: what sums to one target's value, by kind and by layer, as a waterfall.
* `dashboard_figure(graphs)`: scores and leaf shares of many graphs.

Every string that came from a model, a corpus or a file passes `visible`/`readable` and `plotly_text` first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..circuits import Graph, Path
from ..circuits.graph import FEATURES, TARGETS
from ..saes.errors import UserError
from .circuit import STYLES
from .figures import BLUE, GREY, RED
from .text import number, plotly_text, readable, visible

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SCORES = {
    "replacement": "replacement",
    "completeness": "completeness",
    "replacement_compatible": "replacement<br>(compatible)",
    "completeness_compatible": "completeness<br>(compatible)",
}
LEAVES = ("token", "error", "rest", "first", "bias", "position")
LEAF_COLOURS = {"token": STYLES["token"][0], "error": "#c4463a", "rest": "#8a8f98", "first": "#5b7083",
                "bias": "#b3a394", "position": "#2a9d78"}  # fmt: skip
INK = "#22252b"
STEPS = 24  # bars of a ledger; the smallest are added up


def scores_figure(graph: Graph) -> Figure:
    """A graph's scores as bars from 0 to 1, beside the share of influence that each kind of leaf receives (sums to 1)."""
    from plotly.subplots import make_subplots

    scores = graph.scores()
    figure = make_subplots(1, 2, horizontal_spacing=0.16, subplot_titles=("scores", "where the influence ends"))
    values = [number(getattr(scores, name)) for name in SCORES]
    shares = {kind: number(scores.leaf_shares[kind]) for kind in LEAVES if kind in scores.leaf_shares}
    figure.add_trace(_bar(list(SCORES.values()), values, [BLUE, BLUE, GREY, GREY]), 1, 1)
    names = [STYLES[kind][2] for kind in shares]
    figure.add_trace(_bar(names, list(shares.values()), [LEAF_COLOURS[kind] for kind in shares]), 1, 2)
    figure.update_yaxes(range=[0, 1.12])
    figure.update_layout(**_layout(_headline(graph), 320))
    return figure


def _bar(names: Sequence[str], values: Sequence[Any], colours: Sequence[str]) -> Any:
    import plotly.graph_objects as go

    return go.Bar(
        x=list(names),
        y=list(values),
        marker={"color": list(colours)},
        text=[f"{value:.2f}" if value is not None else "–" for value in values],
        textposition="outside",
        textfont={"color": INK},
        cliponaxis=False,
        hoverinfo="x+y",
        showlegend=False,
    )


def paths_figure(graph: Graph, n: int = 12, target: int | None = None) -> Figure:
    """The n strongest paths to `target` (default: the heaviest) as flows: width is a path's strength, red raises, blue lowers.

    Paths share nodes, so that a flow into a node is the sum of the paths through it. UserError where the graph has no target.
    """
    import plotly.graph_objects as go

    found = graph.paths(n, target)
    used = sorted({item for path in found for item in path.nodes})
    place = {item: number_ for number_, item in enumerate(used)}
    flows = _flows(found)
    colours = [STYLES.get(graph.nodes[item].kind, (GREY,))[0] for item in used]
    figure = go.Figure(
        go.Sankey(
            arrangement="snap",
            node={
                "label": [plotly_text(_label(graph, item)) for item in used],
                "color": colours,
                "pad": 14,
                "thickness": 14,
                "line": {"width": 0},
                "customdata": [plotly_text(_hover(graph, item)) for item in used],
                "hovertemplate": "%{customdata}<extra></extra>",
            },
            link={
                "source": [place[source] for source, _ in flows],
                "target": [place[end] for _, end in flows],
                "value": [strength for strength, _ in flows.values()],
                "color": [
                    "rgba(196,70,58,0.4)" if weight > 0 else "rgba(47,111,179,0.4)" for _, weight in flows.values()
                ],
                "customdata": [f"weight {weight:+.3g}, strength {strength:.3g}" for strength, weight in flows.values()],
                "hovertemplate": "%{customdata}<extra></extra>",
            },
        )
    )
    shown = sum(path.strength for path in found)
    title = f"{len(found)} strongest paths: {shown:.1%} of the target's influence from tokens and leaves"
    figure.update_layout(**_layout(title, 120 + 34 * max(len(used) // 3, 6)))
    return figure


def _flows(found: Sequence[Path]) -> dict[tuple[int, int], tuple[float, float]]:
    """(source, target) → strength of the paths along this edge, and the edge's weight."""
    flows: dict[tuple[int, int], tuple[float, float]] = {}
    for path in found:
        for source, end, weight in zip(path.nodes, path.nodes[1:], path.weights, strict=False):
            flows[source, end] = flows.get((source, end), (0.0, 0.0))[0] + path.strength, weight
    return flows


def ledger_figure(graph: Graph, target: int | None = None) -> Figure:
    """What sums to the value of node `target` (default: the heaviest target): a waterfall from leaves to features by layer.

    A step is the sum of the edges from one kind of node in one layer; the smallest are added up as "all else". The title has
    the value and the row's residual, |value − sum| / sum of |weights|. UserError for a node without incoming edges.
    """
    import plotly.graph_objects as go

    target = _row(graph, target)
    steps = _steps(graph, target)
    total = sum(weight for _, weight in steps)
    value, residual = float(graph.row_values[target]), float(graph.row_residuals()[target])
    figure = go.Figure(
        go.Waterfall(
            x=[name for name, _ in steps] + ["sum"],
            y=[number(weight, 6) for _, weight in steps] + [number(total, 6)],
            measure=["relative"] * len(steps) + ["total"],
            increasing={"marker": {"color": RED}},
            decreasing={"marker": {"color": BLUE}},
            totals={"marker": {"color": STYLES["logit"][0]}},
            connector={"line": {"color": GREY, "width": 1}},
            hoverinfo="x+delta+final",
            showlegend=False,
        )
    )
    name = plotly_text(visible(graph.nodes[target].label, 40))
    closes = "no ledger" if residual != residual else f"value {value:.4g}, residual of this row {residual:.1e}"
    figure.update_layout(**_layout(f"what sums to {name}: {closes}", 380))
    figure.update_xaxes(tickangle=-45)
    figure.update_yaxes(rangemode="tozero")
    return figure


def _row(graph: Graph, target: int | None) -> int:
    if target is None:
        target = max(graph.targets, key=lambda item: graph.nodes[item].weight, default=-1)
    if not 0 <= target < len(graph) or not bool((graph.edges.target == target).any()):
        raise UserError(f"expected a node with incoming edges; got {target}; see graph.targets")
    return target


def _steps(graph: Graph, target: int) -> list[tuple[str, float]]:
    """(name, summed weight): leaves by kind first, then features by layer."""
    mine = graph.edges.target == target
    sums: dict[tuple[int, int, str], float] = defaultdict(float)
    for source, weight in zip(
        graph.edges.source[mine].tolist(), graph.edges.weight[mine].double().tolist(), strict=True
    ):
        one = graph.nodes[source]
        if one.kind in LEAVES:
            sums[0, LEAVES.index(one.kind), STYLES[one.kind][2]] += weight
        else:
            sums[1, one.layer, f"{plotly_text(readable(one.kind, 20))} L{one.layer}"] += weight
    kept = sorted(sorted(sums, key=lambda key: -abs(sums[key]))[:STEPS])
    others = sum(weight for key, weight in sums.items() if key not in kept)
    named = [(key[2], sums[key]) for key in kept]
    return named + [("all else", others)] if len(kept) < len(sums) else named


def dashboard_figure(graphs: Mapping[str, Graph]) -> Figure:
    """Many graphs, a row each: replacement and completeness (strict and compatible) beside the shares of influence on leaves.

    `graphs` maps names to graphs, as in `Things.graphs`; a hover tells prompt, target and residual.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    rows = [
        (f"{place + 1} {_named(name, graph)}", graph, graph.scores())
        for place, (name, graph) in enumerate(graphs.items())
    ]
    names = [name for name, _, _ in rows]
    hover = [_about(graph) for _, graph, _ in rows]
    figure = make_subplots(
        1, 2, shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=("scores", "where the influence ends")
    )
    marks = {"replacement": (BLUE, "circle"), "completeness": (RED, "circle"),
             "replacement_compatible": (BLUE, "circle-open"), "completeness_compatible": (RED, "circle-open")}  # fmt: skip
    for score, (colour, symbol) in marks.items():
        figure.add_trace(
            go.Scatter(
                x=[number(getattr(scores, score)) for _, _, scores in rows],
                y=names,
                mode="markers",
                name=score.replace("_", " "),
                marker={"color": colour, "symbol": symbol, "size": 10},
                hovertext=hover,
                hoverinfo="text+x",
                cliponaxis=False,
            ),
            1,
            1,
        )
    for kind in LEAVES:
        shares = [number(scores.leaf_shares.get(kind, 0.0)) for _, _, scores in rows]
        if any(shares):
            bar = {"x": shares, "y": names, "orientation": "h", "name": STYLES[kind][2]}
            figure.add_trace(go.Bar(**bar, marker={"color": LEAF_COLOURS[kind]}, hoverinfo="name+x"), 1, 2)
    figure.update_layout(**_layout("", 140 + 26 * max(len(rows), 2)), barmode="stack")
    figure.update_layout(
        showlegend=True, legend={"orientation": "h", "y": -0.18, "yanchor": "top", "traceorder": "normal"}
    )
    figure.update_xaxes(range=[0, 1.02])
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure


def _named(name: str, graph: Graph) -> str:
    prompt = readable(graph.metadata.get("prompt", ""), 34)
    return plotly_text(prompt or readable(name, 34))


def _about(graph: Graph) -> str:
    target = max(graph.targets, key=lambda item: graph.nodes[item].weight, default=None)
    says = "no target" if target is None else visible(graph.nodes[target].label, 40)
    return plotly_text(f"{readable(graph.metadata.get('prompt', ''), 90)} → {says}; {readable(graph.closure)}")


def _label(graph: Graph, item: int) -> str:
    one = graph.nodes[item]
    return visible(one.label, 28) if one.kind in ("token", *TARGETS) else visible(f"{one.label} @{one.position}", 34)


def _hover(graph: Graph, item: int) -> str:
    one = graph.nodes[item]
    worth = f", attribution {number(one.attribution, 3)}" if one.kind in FEATURES else ""
    return f"{visible(one.label, 80)}: value {number(one.value)}{worth}"


def _headline(graph: Graph) -> str:
    return f"{plotly_text(readable(graph.metadata.get('prompt', ''), 90))} · {plotly_text(readable(graph.closure))}"


def _layout(title: str, height: int) -> dict[str, Any]:
    return {
        "template": "plotly_white",
        "height": height,
        "margin": {"l": 50, "r": 16, "t": 64 if title else 40, "b": 60},
        "title": {"text": title, "font": {"size": 14}} if title else None,
        "showlegend": False,
    }
