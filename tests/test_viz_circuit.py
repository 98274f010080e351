"""What the circuit page is told: sums over pins and groups, partners, searches, heads, views, figures, against brute force."""

import json
import math
import time

import fakes
import pytest
import torch
from unweave.circuits import Edges, Graph, HeadSplit, Node, attach_heads
from unweave.viz.answers import answer
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


def pinned(graph: Graph, *groups: list[int]):
    return answer(things(graph), f"graphs/0/pinned/{','.join('-'.join(map(str, group)) for group in groups)}")


def test_weights_between_pinned_groups_are_sums_and_rows_close(graph):
    target = graph.targets[0]
    groups = [[target], of_layer(graph, 5, 3), of_layer(graph, 4, 2), of_layer(graph, 2, 1), [1]]
    found, known = pinned(graph, *groups), weights(graph)
    assert found["why"] == ""
    sums = {(to, giver): weight for to, giver, weight, _ in found["edges"]}
    for to, members in enumerate(groups):
        for giver, sources in enumerate(groups):
            whole = math.fsum(known.get((t, s), 0.0) for t in members for s in sources)
            assert sums.get((to, giver), 0.0) == pytest.approx(whole if to != giver else 0.0, rel=1e-3, abs=1e-12)
        inside = {s for source in groups for s in source}
        row = found["rows"][to]
        mine = [(s, w) for (t, s), w in known.items() if t in members and s not in members]
        assert row[0] == pytest.approx(math.fsum(w for s, w in mine if s in inside), rel=1e-3, abs=1e-9)
        assert row[1] == pytest.approx(math.fsum(w for s, w in mine if s not in inside and w > 0), rel=1e-3, abs=1e-9)
        assert row[2] == pytest.approx(math.fsum(w for s, w in mine if s not in inside and w < 0), rel=1e-3, abs=1e-9)


def test_shares_between_pinned_groups_are_the_published_viewers(graph):
    """weight(S → T) = sum_t m_t sum_s A[t, s] / ext_t over the whole graph, from the definition in supernodes.py."""
    five, four = of_layer(graph, 5, 3), of_layer(graph, 4, 3)
    found, known = pinned(graph, five, four), weights(graph)
    outside = {
        t: sum(abs(w) for (row, s), w in known.items() if row == t and s not in five) for t in five
    }  # features of one layer do not feed each other here
    total = {t: sum(abs(w) for (row, _), w in known.items() if row == t) for t in five}
    mixed = {t: outside[t] / total[t] for t in five}
    share = sum(mixed[t] / sum(mixed.values()) * sum(known.get((t, s), 0.0) for s in four) / outside[t] for t in five)
    assert found["edges"] == [[0, 1, pytest.approx(found["edges"][0][2]), pytest.approx(share, rel=1e-3)]]


def test_groups_that_cannot_be_say_why(graph):
    assert "kind" in pinned(graph, [graph.targets[0], of_layer(graph, 5, 1)[0]])["why"]
    first = of_layer(graph, 1, 14)
    known = weights(graph)
    low, middle, high = next(
        (a, b, c)
        for (b, a) in known
        for (c, other) in known
        if other == b and a in first and graph.nodes[b].kind == graph.nodes[c].kind == "neuron"
    )
    assert "cycle" in pinned(graph, [low, high], [middle])["why"]
    with pytest.raises(KeyError):
        pinned(graph, [len(graph)])


def test_scores_of_what_is_pinned_are_the_graphs(graph):
    chosen = of_layer(graph, 5, 4) + of_layer(graph, 3, 4)
    assert pinned(graph, *([item] for item in chosen))["scores"]["replacement"] == pytest.approx(
        graph.scores(chosen).replacement, rel=1e-3
    )


def test_found_groups_name_features_of_the_picture(graph):
    found = answer(things(graph), "graphs/0/groups")
    assert found["groups"]
    for label, *nodes in found["groups"]:
        assert label
        assert len(nodes) > 1
        assert all(graph.nodes[item].is_feature for item in nodes)
        assert pinned(graph, nodes)["why"] == ""
    assert 0 < found["quality"] <= 1


def test_any_node_is_told_with_its_heaviest_partners(graph):
    item = of_layer(graph, 5, 1)[0]
    found = answer(things(graph), f"graphs/0/nodes/{item}")["nodes"][item]
    known = weights(graph)
    row = sorted(((s, w) for (t, s), w in known.items() if t == item), key=lambda pair: -abs(pair[1]))[:32]
    assert [source for source, _ in found["incoming"]] == [source for source, _ in row]
    assert [w for _, w in found["incoming"]] == pytest.approx([w for _, w in row], rel=1e-3)
    column = sorted(((t, w) for (t, s), w in known.items() if s == item), key=lambda pair: -abs(pair[1]))[:32]
    assert [target for target, _ in found["outgoing"]] == [target for target, _ in column]
    with pytest.raises(KeyError):
        answer(things(graph), "graphs/0/nodes/99999")


@pytest.mark.parametrize(
    ("query", "fits"),
    [
        ("l3", lambda one: one.layer == 3),
        ("neuron l2", lambda one: one.layer == 2 and "neuron" in one.label.lower()),
        ("@fran", lambda one: one.position == 4),
        ("token", lambda one: one.kind == "token"),
        ("bias of", lambda one: "bias of" in one.label),
        ("nothing-like-this", lambda one: False),
    ],
)
def test_search_finds_by_label_kind_layer_and_token(graph, query, fits):
    found = answer(things(graph), f"graphs/0/find/{query}")
    wanted = {item for item, one in enumerate(graph.nodes) if fits(one)}
    assert found["total"] == len(wanted)
    assert set(found["ids"]) <= wanted
    assert len(found["ids"]) == min(len(wanted), 60)


def test_the_picture_carries_all_edges_among_its_nodes(graph):
    payload = answer(things(graph), "graphs/0/drawn/40")
    drawn = {item for item, one in payload["nodes"].items() if "x" in one}
    assert len(drawn) == 40
    assert payload["is_whole"]
    assert {(t, s) for t, s, _, _ in payload["edges"]} == {
        pair for pair in weights(graph) if pair[0] in drawn and pair[1] in drawn
    }
    mass = {item: math.fsum(abs(w) for (t, _), w in weights(graph).items() if t == item) for item in drawn}
    assert all(payload["nodes"][item]["row"] == pytest.approx(mass[item], rel=1e-3) for item in drawn)


def with_heads(graph: Graph) -> Graph:
    target = graph.targets[0]
    sources = graph.edges.source[graph.edges.target == target].long()
    parts = torch.randn(1, 2, 4, len(sources), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    edge = graph.edges.weight[graph.edges.target == target].double()
    split = HeadSplit(graph.nodes, (target,), (2, 4), sources, parts, edge - parts.sum(2))
    return attach_heads(graph, split, n=1000)


def test_parts_of_an_edge_sum_to_it_and_a_heads_row_to_its_parts(graph):
    split = with_heads(graph)
    found = answer(things(split), "graphs/0/heads")
    known = weights(graph)
    for edge in found["edges"]:
        whole = sum(weight for _, weight in edge["parts"]) + edge["others"] + edge["bypass"]
        assert whole == pytest.approx(known[edge["target"], edge["source"]], rel=1e-2, abs=1e-2)
    entries = split.metadata["heads"]
    assert len(found["heads"]) == 8
    for row in found["heads"]:
        mine = [entry["heads"][row["head"]] for entry in entries if entry["layer"] == row["layer"]]
        assert row["sum"] == pytest.approx(sum(mine), rel=1e-3)
        assert row["absolute"] == pytest.approx(sum(map(abs, mine)), rel=1e-3)
        assert abs(row["weight"]) == pytest.approx(max(map(abs, mine)), rel=1e-3)


@pytest.mark.parametrize(
    "heads",
    [
        5,
        "x",
        [1],
        [{"target": -1, "source": 0, "layer": 0, "heads": [1.0], "bypass": 0.0}],
        [
            {"target": 0, "source": 0, "layer": 0, "heads": "no"},
            {"target": 0, "source": 1, "layer": 0, "heads": [math.nan], "bypass": 0},
        ],
    ],
)
def test_a_strangers_metadata_break_nothing(graph, heads):
    wild = {
        "heads": heads,
        "supernodes": heads,
        "token_strings": heads,
        "dictionaries": heads,
        "model": heads,
        "validation": heads,
        "prompt": heads,
    }
    opened = things(Graph(list(graph.nodes), graph.edges, graph.row_values, wild))
    for path in ("graphs", "graphs/0", "graphs/0/labels", "graphs/0/find/@a", "graphs/0/groups"):
        json.dumps(answer(opened, path), allow_nan=False)
    assert not [edge for edge in answer(opened, "graphs/0/heads")["edges"] if edge["parts"]]
    assert answer(opened, "graphs/0")["groups"] == []


def large(nodes: int = 8000, edges: int = 420_000) -> Graph:
    """A random graph of that size: 26 layers, 20 tokens, ten targets."""
    generator = torch.Generator().manual_seed(0)
    layers, tokens = 26, 20
    leaves = [Node("token", -1, place, place, 1.0, f" t{place}") for place in range(tokens)]
    layer = torch.randint(0, layers, (nodes - tokens - 10,), generator=generator).sort().values
    position = torch.randint(0, tokens, layer.shape, generator=generator).tolist()
    features = [
        Node("latent", at, place, index, 1.0, f"L{at} latent {index}")
        for index, (at, place) in enumerate(zip(layer.tolist(), position, strict=True))
    ]
    targets = [
        Node("logit", layers, tokens - 1, index, 1.0, f" l{index}", 0.0, 0.5 / (index + 1)) for index in range(10)
    ]
    all_layers = torch.cat([torch.full((tokens,), -1), layer, torch.full((10,), layers)])
    target = torch.randint(tokens, nodes, (edges,), generator=generator)
    target[:4000] = torch.randint(nodes - 10, nodes, (4000,), generator=generator)
    below = torch.searchsorted(all_layers, all_layers[target])
    source = (torch.rand(edges, generator=generator) * below).long()
    pair = (target * nodes + source).unique()
    target, source = (pair // nodes).int(), (pair % nodes).int()
    weight = torch.randn(len(pair), generator=generator) ** 3
    values = torch.zeros(nodes, dtype=torch.float64).index_add_(0, target.long(), weight.double()).float()
    values[:tokens] = math.nan
    return Graph([*leaves, *features, *targets], Edges(target, source, weight), values, {"prompt": "large"})


def test_a_large_graph_is_answered_within_two_seconds_and_sends_only_what_is_drawn():
    opened = things(large())
    start = time.process_time()
    payload = answer(opened, "graphs/0")
    assert time.process_time() - start < 2
    assert payload["counts"]["edges"] > 380_000
    assert sum("x" in one for one in payload["nodes"].values()) == 120
    assert len(json.dumps(payload)) < 1_000_000
