"""Beside the circuit's picture: saved views, the table of many circuits, plotly figures, experiments, against brute force."""

import json
import math

import fakes
import pytest
import torch
from unweave.circuits import Edges, Graph, QKTable
from unweave.circuits.attention.qk import Pair
from unweave.saes import UserError
from unweave.viz import graph_figures
from unweave.viz.actions import act
from unweave.viz.answers import answer
from unweave.viz.answers.frozen_graphs import frozen_graphs
from unweave.viz.answers.views import view_file
from unweave.viz.live import Live
from unweave.viz.text import visible
from unweave.viz.things import Things


def things(*graphs: Graph) -> Things:
    return Things(graphs={f"circuit {place}": graph for place, graph in enumerate(graphs)})


def weights(graph: Graph) -> dict[tuple[int, int], float]:
    return {(t, s): w for t, s, w in zip(*(column.tolist() for column in graph.edges), strict=True)}


def of_layer(graph: Graph, layer: int, count: int) -> list[int]:
    return [item for item, one in enumerate(graph.nodes) if one.is_feature and one.layer == layer][:count]


@pytest.fixture(scope="module")
def graph():
    return fakes.graph()


@pytest.fixture
def saved(graph, tmp_path):
    opened = things(graph)
    opened.files = {"circuit 0": graph.save(tmp_path / "france.graph")}
    return opened


def test_a_view_is_saved_beside_its_graph_and_comes_back(saved, graph, tmp_path):
    group = of_layer(graph, 5, 2)
    view = {
        "pins": [1, graph.targets[0], 1],
        "groups": [[fakes.HOSTILE[7] + "end", *group]],
        "keep": 60,
        "strongest": 90,
    }
    assert act(Live(saved), "view", {"graph": 0, "view": view}) == {"saved": "france.view.json"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["france.graph", "france.view.json"]
    found = answer(saved, "graphs/0/view")
    assert found == {"pins": [1, graph.targets[0]], "groups": [["⟨U+D800⟩end", *group]], "keep": 60, "strongest": 90}


def test_a_view_of_a_graph_traced_again_keeps_only_what_is_the_same(saved, graph):
    chosen = of_layer(graph, 5, 2)
    act(Live(saved), "view", {"graph": 0, "view": {"pins": [1, *chosen], "groups": [["g", *chosen]]}})
    nodes = list(graph.nodes)
    nodes[chosen[0]] = nodes[chosen[0]]._replace(index=999)
    saved.graphs["circuit 0"] = Graph(nodes, graph.edges, graph.row_values, graph.metadata)
    assert answer(saved, "graphs/0/view") == {"pins": [1, chosen[1]], "groups": [["g", chosen[1]]]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": "unweave_view", "nodes": 3}',
        "\x00",
        '{"format": "unweave_view", "nodes": {}, "pins": {"a": 1}, "groups": [5, ["x"]], "keep": 1e9}',
    ],
)
def test_a_broken_view_is_told_and_hides_nothing(saved, text):
    view_file(saved.files["circuit 0"]).write_text(text)
    found = answer(saved, "graphs/0/view")
    assert "why" in found or found == {"pins": [], "groups": []}


@pytest.mark.parametrize(
    "view",
    [
        None,
        [],
        {"pins": [10**6]},
        {"pins": [True]},
        {"groups": [["x"]]},
        {"groups": [[1, 2]]},
        {"keep": 101},
        {"keep": "60"},
        {"pins": list(range(501))},
    ],
)
def test_a_view_that_does_not_fit_is_refused(saved, view):
    with pytest.raises(UserError, match=r"expected .*; got"):
        act(Live(saved), "view", {"graph": 0, "view": view})
    assert not view_file(saved.files["circuit 0"]).exists()


def test_the_view_of_a_graph_from_memory_cannot_be_saved(graph):
    with pytest.raises(UserError, match="memory"):
        act(Live(things(graph)), "view", {"graph": 0, "view": {"pins": [1]}})


def test_labels_of_the_stores_name_the_circuits_latents(graph, tmp_path):
    opened = Things(stores={"mlp-3": fakes.store(tmp_path)}, graphs={"circuit": graph})
    labels = answer(opened, "graphs/0/labels")
    mine = {str(item) for item, one in enumerate(graph.nodes) if one.kind == "latent" and one.index == 5}
    assert labels == dict.fromkeys(mine, "animals that jump")
    assert answer(opened, "graphs/0")["nodes"][int(mine.pop())]["store"] == 0


def test_the_dashboard_has_each_graphs_numbers(graph):
    report = {"spearman": 0.8, "interval": [0.5, 0.9], "warnings": ["a"]}
    other = Graph(list(graph.nodes), graph.edges, graph.row_values, graph.metadata | {"validation": report})
    found = answer(things(graph, other), "graphs")
    first, second = found["graphs"]
    assert first["completeness"] == pytest.approx(graph.scores().completeness, rel=1e-2)
    assert first["target"] == visible(graph.nodes[graph.targets[0]].label)
    assert first["weight"] == 0.77
    assert (first["nodes"], first["edges"]) == (len(graph), len(graph.edges.weight))
    assert sum(first["leaf_shares"].values()) == pytest.approx(1, abs=0.01)
    assert first["validation"] is None
    assert second["validation"] == {"spearman": 0.8, "interval": [0.5, 0.9], "warnings": 1}


def test_features_recur_when_layer_index_and_dictionary_agree(graph):
    renamed = [one._replace(index=one.index + 500) if one.layer == 5 else one for one in graph.nodes]
    other = Graph(renamed, graph.edges, graph.row_values, graph.metadata)
    found = answer(things(graph, other), "graphs")["recurring"]
    assert found
    assert {one["layer"] for one in found} == {0, 1, 2, 3, 4}
    for one in found:
        for place, item, _ in one["graphs"]:
            node = (graph, other)[place].nodes[item]
            assert (node.kind, node.layer, node.index) == (one["kind"], one["layer"], one["index"])
    foreign = graph.metadata | {"dictionaries": [{"site": "", "fingerprint": "another"}], "model": {"name": "another"}}
    stranger = Graph(list(graph.nodes), graph.edges, graph.row_values, foreign)
    assert answer(things(graph, stranger), "graphs")["recurring"] == []


def test_the_ledger_figure_sums_to_the_targets_value(graph):
    target = graph.targets[0]
    (bars,) = graph_figures.ledger_figure(graph).data
    assert sum(bars.y[:-1]) == pytest.approx(float(graph.row_values[target]), rel=1e-4)
    assert bars.y[-1] == pytest.approx(float(graph.row_values[target]), rel=1e-4)
    tokens = sum(w for (t, s), w in weights(graph).items() if t == target and graph.nodes[s].kind == "token")
    assert dict(zip(bars.x, bars.y, strict=True))["token"] == pytest.approx(tokens, rel=1e-4)
    assert f"{graph.row_residuals()[target]:.1e}" in graph_figures.ledger_figure(graph).layout.title.text
    with pytest.raises(UserError):
        graph_figures.ledger_figure(graph, 0)


def test_the_ledgers_smallest_steps_are_added_up():
    graph = fakes.graph(layers=40, per_layer=3)
    item = graph.targets[0]
    (bars,) = graph_figures.ledger_figure(graph).data
    assert len(bars.x) <= graph_figures.STEPS + 2
    assert sum(bars.y[:-1]) == pytest.approx(float(graph.row_values[item]), rel=1e-4)


def test_the_paths_figure_has_each_paths_edges(graph):
    (flow,) = graph_figures.paths_figure(graph, n=6).data
    found = graph.paths(6)
    into_target = math.fsum(path.strength for path in found)
    names = list(flow.node.label)
    last = names.index(visible(graph.nodes[graph.targets[0]].label))
    arriving = math.fsum(v for v, t in zip(flow.link.value, flow.link.target, strict=True) if t == last)
    assert arriving == pytest.approx(into_target, rel=1e-6)
    assert len(flow.link.value) == len(
        {pair for path in found for pair in zip(path.nodes, path.nodes[1:], strict=False)}
    )


def test_scores_and_dashboard_figures_carry_the_scores(graph):
    bars, leaves = graph_figures.scores_figure(graph).data
    scores = graph.scores()
    assert list(bars.y) == pytest.approx(list(scores[:4]), rel=1e-3)
    assert sum(leaves.y) == pytest.approx(1, rel=1e-2)
    traces = {trace.name: list(trace.x) for trace in graph_figures.dashboard_figure({"a": graph, "b": graph}).data}
    assert traces["completeness"] == pytest.approx([scores.completeness] * 2, rel=1e-3)


def test_no_markup_from_data_reaches_the_figures():
    graph = fakes.graph(hostile=True)
    figures = [
        graph_figures.scores_figure(graph),
        graph_figures.paths_figure(graph),
        graph_figures.ledger_figure(graph),
        graph_figures.dashboard_figure(
            {fakes.HOSTILE[0]: graph, "": Graph(list(graph.nodes), graph.edges, graph.row_values, {})}
        ),
    ]
    for figure in figures:
        text = (
            figure.to_json()
            .replace("<br>", "")
            .replace("\\u003cbr\\u003e", "")
            .replace("<extra></extra>", "")
            .replace("\\u003cextra\\u003e\\u003c\\u002fextra\\u003e", "")
        )
        shown = json.loads(text)
        assert "<" not in json.dumps([shown["data"], shown["layout"] | {"template": None}], ensure_ascii=False)


def test_figures_are_answered_and_say_why_there_is_none(graph):
    bare = Graph(
        [one for one in graph.nodes if one.kind == "token"],
        Edges(*(column[:0] for column in graph.edges)),
        graph.row_values[:6],
        {},
    )
    for name in ("scores", "paths", "ledger"):
        assert answer(things(graph), f"graphs/0/figures/{name}")["data"]
    assert "expected" in answer(things(bare), "graphs/0/figures/ledger")["why"]
    assert answer(things(graph), f"graphs/0/figures/ledger/{graph.targets[1]}")["data"]


class Asked(Live):
    """A live host without a model that remembers what it was asked."""

    def validate(self, place, nodes):
        self.asked = (place, nodes)
        return {
            "nodes": nodes,
            "predicted": [-1.0] * len(nodes),
            "measured": [math.nan] * len(nodes),
            "warnings": [fakes.HOSTILE[0]],
        }

    def qk(self, place, layer, head, query, key):
        generator = torch.Generator().manual_seed(0)
        nodes = self.graph(place).nodes[:30]
        factors = torch.randn(2, 30, 4, generator=generator, dtype=torch.float64)
        score = float(factors[0].sum(0) @ factors[1].sum(0))
        return QKTable(
            layer, head, query, key, score, 0.0, None, nodes, tuple(range(29)) + (-1,), (Pair(1, 2, 0.5),), *factors
        )


def test_a_selection_is_handed_to_the_live_host(graph):
    live = Asked(things(graph))
    chosen = of_layer(graph, 5, 2)
    found = act(live, "validate", {"graph": 0, "nodes": [*chosen, chosen[0]]})
    assert live.asked == (0, chosen)
    assert found["measured"] == [None, None]
    for nodes in ([], [graph.targets[0]], ["1"], [10**7], None, [True]):
        with pytest.raises(UserError):
            act(live, "validate", {"graph": 0, "nodes": nodes})


def test_a_scores_tables_are_sums_of_its_pairs(graph):
    live = Asked(things(graph))
    found = act(live, "qk", {"graph": 0, "layer": 1, "head": 2, "query": 5, "key": 1})
    table = live.qk(0, 1, 2, 5, 1)
    assert sum(map(sum, found["places"])) == pytest.approx(table.score, rel=1e-2)
    names = [visible(one.label) for one in table.nodes]
    for row, query in enumerate(found["query"]):
        for column, key in enumerate(found["key"]):
            one, other = names.index(query["label"]), names.index(key["label"])
            assert found["cells"][row][column] == pytest.approx(float(table.contributions([one], [other])), rel=1e-3)
    assert found["pairs"][0][2] == 0.5
    for body in ({}, {"graph": 0, "layer": "1", "head": 0, "query": 0, "key": 0}):
        with pytest.raises(UserError):
            act(live, "qk", body)


def test_a_page_carries_figures_only_where_it_has_plotly(graph):
    entry = {"target": graph.targets[0], "source": 0, "layer": 0, "heads": [1.0], "bypass": 0.0}
    split = Graph(list(graph.nodes), graph.edges, graph.row_values, graph.metadata | {"heads": [entry]})
    opened = things(split, graph)
    bare, whole = (dict(frozen_graphs(opened, has_plotly)) for has_plotly in (False, True))
    assert {"graphs", "graphs/0/heads", "graphs/1/groups", "graphs/0/view", "graphs/1/labels"} <= bare.keys()
    assert "graphs/1/heads" not in bare
    assert whole.keys() - bare.keys() == {
        "graphs/figures/dashboard",
        *(f"graphs/{g}/figures/{name}" for g in (0, 1) for name in ("scores", "paths", "ledger")),
    }
