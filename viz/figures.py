"""Plotly figures as pure functions: data in, `plotly.graph_objects.Figure` out; no file, no model, no state.

* `feature_figure(feature)`: how often and how strongly a latent fires, and which tokens its decoder row promotes.
* `training_figure(rows)`: the curves of a training run against tokens seen.

Every string that came from a model, a corpus or a file passes `visible`/`readable` and `plotly_text` first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..saes import Feature
from .text import number, plotly_text, readable, visible

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

RED, BLUE, GREY = "#c4463a", "#2f6fb3", "#8a8f98"
CURVES = {
    "loss": "loss",
    "fvu": "variance unexplained (FVU)",
    "l0": "active latents a token (L0)",
    "dead_share": "share of dead latents",
    "sparsity": "weight of the penalty",
    "tokens_per_s": "tokens per second",
}


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
    figure.update_xaxes(type="log", range=_filled_range(edges, counts), row=1, col=1)
    figure.update_layout(
        template="plotly_white",
        height=560,
        margin={"l": 90, "r": 20, "t": 80, "b": 40},
        title={"text": _feature_title(feature), "font": {"size": 14}},
    )
    return figure


def _filled_range(edges: Sequence[float], counts: Sequence[int]) -> list[float] | None:
    """Decades from the first bin that holds something to the last, and one bin on either side; None (all) where none does."""
    filled = [place for place, count in enumerate(counts) if count]
    if not filled:
        return None
    shown = edges[max(filled[0] - 1, 0) : filled[-1] + 3]
    return [math.log10(next(edge for edge in shown if edge > 0)), math.log10(shown[-1])]


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
    lines = math.ceil(len(curves) / columns)
    cells: list[Any] = [{} if place < len(curves) else None for place in range(lines * columns)]
    figure = make_subplots(
        rows=lines,
        cols=columns,
        specs=[cells[start : start + columns] for start in range(0, len(cells), columns)],
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
        if key == "dead_share":  # plotly would write 0.0005 as 500µ
            figure.update_yaxes(tickformat=".3~p", hoverformat=".3~p", row=row, col=col)
    figure.update_xaxes(title={"text": "tokens", "font": {"size": 11}, "standoff": 2})
    figure.update_annotations(font_size=13)
    figure.update_layout(
        template="plotly_white",
        height=250 * lines + 60,
        margin={"l": 50, "r": 16, "t": 70 if name else 40, "b": 40},
        title={"text": plotly_text(readable(name)), "font": {"size": 14}} if name else None,
    )
    return figure
