"""Figures carry the data they are given, and nothing in the data becomes markup."""

import itertools
import json
import math

import fakes
import pytest
import torch
from unweave.circuits import Edges, Graph, Node
from unweave.saes.latents.shelf.store import Histogram
from unweave.viz import circuit_figure, feature_figure, training_figure
from unweave.viz.layout import draw
from unweave.viz.text import jsonable, number, plotly_text, readable, visible


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return fakes.store(tmp_path_factory.mktemp("store"))


def texts(value) -> list[str]:
    """Every string of a figure's JSON."""
    if isinstance(value, dict):
        return [text for inner in value.values() for text in texts(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in texts(inner)]
    return [value] if isinstance(value, str) else []


def test_circuit_figure_draws_every_node_when_there_is_room():
    graph = fakes.graph()
    figure = circuit_figure(graph, nodes=1000)
    drawn = {item for trace in figure.data if trace.customdata is not None for item in trace.customdata}
    reached = {item for item, share in enumerate(draw(graph).influence.tolist()) if share > 0}
    assert drawn == reached
    assert "The capital of France is" in figure.layout.title.text
    assert f"residual {graph.residual:.1e}" in figure.layout.title.text
    assert f"replacement {graph.scores().replacement:.2f}" in figure.layout.title.text


def test_targets_are_drawn_and_named_nodes_take_most_places():
    graph = fakes.graph()
    drawing = draw(graph, nodes=40)
    kinds = [graph.nodes[item].kind for item in drawing.nodes]
    assert kinds.count("logit") == 2
    assert len(kinds) == 40
    assert sum(kind in ("token", "neuron", "latent") for kind in kinds) >= 28


def test_edges_are_drawn_by_the_influence_that_they_carry():
    """strength = |w| / sum |row| * influence of the target, recomputed edge by edge from the graph."""
    graph = fakes.graph()
    drawing = draw(graph, nodes=30, edges=15)
    rows = dict.fromkeys(range(len(graph)), 0.0)
    edges = list(zip(*(column.tolist() for column in graph.edges), strict=True))
    for target, _, weight in edges:
        rows[target] += abs(weight)
    carried = {
        (target, source): abs(weight) / rows[target] * float(drawing.influence[target])
        for target, source, weight in edges
        if target in drawing.nodes and source in drawing.nodes
    }
    strongest = sorted(carried, key=lambda edge: -carried[edge])[:15]
    assert [(edge.target, edge.source) for edge in drawing.edges] == strongest
    assert [edge.strength for edge in drawing.edges] == pytest.approx(
        [carried[edge] / carried[strongest[0]] for edge in strongest]
    )


def test_positive_edges_are_red_and_negative_blue():
    figure = circuit_figure(fakes.graph())
    colours = {trace.name: trace.line.color for trace in figure.data if trace.mode == "lines"}
    assert colours == {"raises": "#c4463a", "lowers": "#2f6fb3"}


def test_layers_are_rows_and_tokens_are_columns():
    graph = fakes.graph()
    drawing = draw(graph, nodes=1000)
    for item in drawing.nodes:
        for other in drawing.nodes:
            a, b = graph.nodes[item], graph.nodes[other]
            if a.layer < b.layer:
                assert drawing.y[item] < drawing.y[other]
            if a.position < b.position:
                assert drawing.x[item] < drawing.x[other]
    places = [(drawing.x[item], drawing.y[item]) for item in drawing.nodes]
    assert len(set(places)) == len(places)


def test_feature_figure_shows_the_histogram_and_the_logits(store):
    feature = store[5]
    bars, lowest, highest = feature_figure(feature).data
    assert list(bars.y) == feature.histogram.counts.tolist()
    assert list(highest.x) == [number(value) for _, value in feature.top_logits]
    assert len(set(lowest.y)) == len(feature.bottom_logits)
    assert "animals that jump" in feature_figure(feature).layout.title.text


def test_feature_figure_ends_a_bin_beyond_what_is_filled(store):
    feature = store[5]
    low, high = (10**end for end in feature_figure(feature).layout.xaxis.range)
    edges, counts = feature.histogram.edges, feature.histogram.counts
    is_shown = (edges[:-1] >= low * 0.999) & (edges[1:] <= high * 1.001)
    first, last = counts.nonzero()[:, 0][[0, -1]].tolist()
    assert is_shown.nonzero()[:, 0].tolist() == list(range(first - 1, last + 2))


@pytest.mark.parametrize(("filled", "shown"), [([0], [1, 4]), ([2], [2, 8]), ([0, 2], [1, 8])])
def test_feature_figure_never_shows_more_than_the_bins(store, filled, shown):
    counts = torch.zeros(3, dtype=torch.int64)
    counts[filled] = 1
    feature = store[5]._replace(histogram=Histogram(torch.tensor([1.0, 2.0, 4.0, 8.0]), counts))
    assert [10**end for end in feature_figure(feature).layout.xaxis.range] == pytest.approx(shown)


def test_feature_figure_of_a_dead_latent(store):
    figure = feature_figure(store[0])
    assert sum(figure.data[0].y) == 0 and figure.layout.xaxis.range is None


def test_the_share_of_dead_latents_is_told_in_per_cent():
    """Plotly's own tick of 0.0005 would be 500µ."""
    figure = training_figure(fakes.rows())
    formats = {curve.name: figure.layout[curve.yaxis.replace("y", "yaxis")].tickformat for curve in figure.data}
    assert formats.pop("dead_share") == ".3~p" and set(formats.values()) == {None}


def test_training_figure_has_a_curve_for_each_logged_quantity():
    rows = fakes.rows()
    figure = training_figure(rows)
    curves = {trace.name: list(trace.y) for trace in figure.data}
    assert curves.keys() == {"loss", "fvu", "l0", "dead_share", "tokens_per_s"}
    assert curves["fvu"] == pytest.approx([row["fvu"] for row in rows], rel=1e-5)
    assert list(figure.data[0].x) == [row["tokens"] for row in rows]


@pytest.mark.parametrize(
    "curves", [["loss"], ["loss", "fvu", "l0", "dead_share"], ["loss", "fvu", "l0", "dead_share", "tokens_per_s"]]
)
def test_training_figure_has_an_axis_for_each_curve_and_none_besides(curves):
    """On a narrow screen the page stacks all axes; an empty one would be a gap."""
    figure = training_figure([{name: row[name] for name in ("tokens", *curves)} for row in fakes.rows()])
    axes = {name for name in figure.layout.to_plotly_json() if name.startswith("xaxis")}
    assert axes == {trace.xaxis.replace("x", "xaxis") for trace in figure.data} and len(axes) == len(curves)
    assert {figure.layout[name].title.text for name in axes} == {"tokens"}


def test_training_figure_of_no_rows_and_of_broken_values():
    assert len(training_figure([]).data) == 1
    (trace,) = training_figure([{"tokens": 1, "loss": math.nan}, {"tokens": "<b>", "loss": None}]).data
    assert list(trace.y) == [None, None]


def test_no_markup_from_data_reaches_plotly(tmp_path):
    """Plotly renders a subset of HTML: besides our own b, br and span every `<` of the data is escaped."""
    store = fakes.store(tmp_path, hostile=True)
    figures = [
        circuit_figure(fakes.graph(hostile=True)),
        feature_figure(store[5]),
        training_figure(fakes.rows(), name=fakes.HOSTILE[0]),
    ]
    for figure in figures:
        for text in texts(
            {"data": json.loads(figure.to_json())["data"], "layout": json.loads(figure.to_json())["layout"]}
        ):
            for ours in ("<b>", "</b>", "<br>", "</span>", "<span style='font-size:1px'>"):
                text = text.replace(ours, "")
            assert "<" not in text


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" Paris", "␣Paris"),
        ("\n", "⏎"),
        ("  ", "␣␣"),
        ("", "∅"),
        ("\x00", "␀"),
        ("\ud800", "⟨U+D800⟩"),
        ("\u202eevil", "⟨U+202E⟩evil"),
    ],
)
def test_whitespace_and_controls_are_visible(token, shown):
    assert visible(token) == shown


def test_long_strings_are_cut_and_say_so():
    assert readable("A" * 10_000) == "A" * 120 + "… (10000 characters)"


def test_plotly_text_is_the_text_that_is_shown():
    assert plotly_text("<a href='x'>&amp;") == "&lt;a href='x'&gt;&amp;amp;"


def test_jsonable_bounds_depth_and_numbers():
    deep: dict = {}
    for _ in range(50):
        deep = {"a": deep}
    json.dumps(jsonable({"nan": math.nan, "deep": deep, "object": object()}), allow_nan=False)
    assert number(1.23456789e-9, 3) == 1.23e-9


def test_a_graph_without_targets_is_drawn_all_the_same():
    from unweave.viz.answers.graphs import graph_payload

    graph = fakes.graph()
    nodes = [node._replace(kind="neuron") if node.kind == "logit" else node for node in graph.nodes]
    empty = Graph(nodes, graph.edges, graph.row_values, {})
    circuit_figure(empty)
    assert graph_payload(empty)["paths"] == []


def test_the_slider_keeps_the_most_influential_nodes_and_only_edges_between_them():
    graph = fakes.graph()
    figure = circuit_figure(graph, nodes=40)
    drawing = draw(graph, nodes=40)
    place = {(drawing.x[item], drawing.y[item]): item for item in drawing.nodes}
    shown = []
    for step in figure.layout.sliders[0].steps:
        changes, traces = step.args
        kept = set()
        for opacity, index in zip(changes["marker.opacity"], traces, strict=True):
            if figure.data[index].mode != "lines":
                items = figure.data[index].customdata
                kept |= {item for item, shade in zip(items, opacity, strict=True) if shade == 1}
        for xs, ys, index in zip(changes["x"], changes["y"], traces, strict=True):
            if figure.data[index].mode == "lines":
                ends = {place[point] for point in zip(xs, ys, strict=True) if point[0] is not None}
                assert ends <= kept
        dropped = set(drawing.nodes) - kept - {item for item in drawing.nodes if graph.nodes[item].kind == "logit"}
        assert all(
            drawing.influence[a] >= drawing.influence[b]
            for a in kept
            for b in dropped
            if graph.nodes[a].kind != "logit"
        )
        shown.append(kept)
    assert all(smaller <= larger for smaller, larger in itertools.pairwise(shown))
    assert shown[-1] == set(drawing.nodes)
    assert len(shown[0]) < len(shown[-1])


def test_hover_tells_the_examples_of_the_store_of_that_very_dictionary(store):
    graph = fakes.graph()
    site = store.manifest["dictionary"]["site"]
    latent = next(place for place, node in enumerate(graph.nodes) if node.kind == "latent")
    nodes = [node._replace(site=site, index=5) if place == latent else node for place, node in enumerate(graph.nodes)]

    def hover(fingerprint: str) -> str:
        known = {"site": site, "fingerprint": fingerprint}
        traced = Graph(nodes, graph.edges, graph.row_values, graph.metadata | {"dictionaries": [known]})
        figure = circuit_figure(traced, nodes=1000, stores=[store])
        return next(
            text
            for trace in figure.data
            if trace.customdata is not None
            for item, text in zip(trace.customdata, trace.hovertext, strict=True)
            if item == latent
        )

    example = store[5].examples[0]
    mine, others = hover(store.manifest["dictionary"]["fingerprint"]), hover("of another dictionary")
    assert f"<b>{plotly_text(visible(example.tokens[example.focus], 24))}</b>" in mine.replace("\u2423", "\u2423")
    assert len(mine.split("<br>")) > len(others.split("<br>"))


def test_edges_inside_a_layer_lead_upwards():
    """What an attention's dictionary writes, the MLP of the same layer reads: it has a row below."""
    nodes = [
        Node("token", -1, 0, 5, 1.0, "a"),
        Node("latent", 1, 0, 2, 1.0, "z", site="blocks.1.attn.hook_z"),
        Node("latent", 1, 0, 3, 1.0, "mlp", site="blocks.1.mlp.hook_in"),
        Node("logit", 2, 0, 9, 1.0, "b", weight=1.0),
    ]
    edges = Edges(torch.tensor([1, 2, 3]), torch.tensor([0, 1, 2]), torch.ones(3))
    drawing = draw(Graph(nodes, edges, torch.tensor([math.nan, 1.0, 1.0, 1.0]), {"token_strings": ["a"]}))
    assert [drawing.y[item] for item in range(4)] == [0, 1, 2, 3]
    assert [name for _, name in drawing.rows] == ["input", "L1 attn", "layer 1", "output"]
