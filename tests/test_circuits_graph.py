"""I7 to I10: influence, scores, pruning, paths; and graph files: exact round trips, clear errors for broken ones."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import boot, prompt, transcoder
from unweave.circuits import Edges, Graph, Node, trace
from unweave.circuits.simplify.paths import paths
from unweave.circuits.simplify.scores import influence, normalised, target_weights
from unweave.saes.errors import UserError


@pytest.fixture(scope="module")
def graph():
    """GPT-2: all kinds of leaves; neurons in two layers, a transcoder in the third."""
    return trace(boot("gpt2"), prompt(), [transcoder(1, skip=True)], max_features=60)


@pytest.fixture(scope="module")
def pruned(graph):
    return graph.prune(0.8, 0.9)


def dense(graph):
    """Ahat as a matrix [target, source]."""
    matrix = torch.zeros(len(graph), len(graph), dtype=torch.float64)
    matrix[graph.edges.target, graph.edges.source] = normalised(graph.edges, len(graph))
    return matrix


def small():
    """A graph by hand: a logit fed by a token (1) and a feature (3); the feature by a token (2) and an error (-2)."""
    nodes = [
        Node("token", -1, 0, 5, 1.0, "a"),
        Node("error", 0, 0, -1, 1.0, "error"),
        Node("neuron", 1, 0, 7, 2.0, "L1 neuron 7"),
        Node("logit", 2, 0, 9, 4.0, "b", weight=1.0),
    ]
    edges = Edges(
        torch.tensor([2, 2, 3, 3]), torch.tensor([0, 1, 0, 2]), torch.tensor([2.0, -2.0, 1.0, 3.0], dtype=torch.float64)
    )
    values = torch.tensor([float("nan"), float("nan"), 0.0, 4.0], dtype=torch.float64)
    return Graph(nodes, edges, values, {"prompt": "a"})


def test_I7_influence_is_the_inverse(graph):
    weights, matrix = target_weights(graph), dense(graph)
    expected = weights @ (torch.linalg.inv(torch.eye(len(graph), dtype=torch.float64) - matrix)) - weights
    torch.testing.assert_close(
        influence(graph.edges, normalised(graph.edges, len(graph)), weights), expected, rtol=1e-10, atol=1e-13
    )


def test_I7_leaf_influence_sums_to_the_target_weights(graph, pruned):
    for one in (graph, pruned):
        arriving = influence(one.edges, normalised(one.edges, len(one)), target_weights(one))
        leaves = one.row_values.isnan()
        assert float(arriving[leaves].sum()) == pytest.approx(float(target_weights(one).sum()), abs=1e-12)
        assert sum(one.scores().leaf_shares.values()) == pytest.approx(1.0, abs=1e-12)


def test_scores_by_hand():
    """Influence: feature .75, token .25 + .375, error .375."""
    scores = small().scores()
    assert scores.replacement == pytest.approx(0.625)
    assert scores.replacement_compatible == pytest.approx(0.625)
    # Rows with inputs: logit (weight 1, all explained) and feature (.75, half explained).
    assert scores.completeness == pytest.approx((1 + 0.75 * 0.5) / 1.75)
    # circuit-tracer also averages over token (.625) and error (.375), whose empty rows count as explained.
    assert scores.completeness_compatible == pytest.approx((1 + 0.375 + 0.625 + 0.375) / 2.75)


def test_compatible_scores_ignore_the_leaves_that_circuit_tracer_lacks(graph):
    scores = graph.scores()
    assert scores.replacement < scores.replacement_compatible <= 1
    assert scores.completeness < scores.completeness_compatible <= 1


def test_I10_pruning_keeps_row_sums_and_row_mass(graph, pruned):
    assert pruned.residual <= 1e-10
    assert 0 < len(pruned) < len(graph)
    assert len(pruned.edges.weight) < len(graph.edges.weight) / 2
    place = {node: i for i, node in enumerate(graph.nodes)}
    for i, node in enumerate(pruned.nodes):
        if not pruned.row_values[i].isnan():
            old, new = (
                graph.edges.weight[graph.edges.target == place[node]],
                pruned.edges.weight[pruned.edges.target == i],
            )
            assert float(new.sum()) == pytest.approx(float(old.sum()), abs=1e-10)
            assert float(new.abs().sum()) == pytest.approx(float(old.abs().sum()), abs=1e-10)


def test_pruning_can_only_lower_strict_scores(graph):
    full, some, few = (one.scores() for one in (graph, graph.prune(0.9, 0.99), graph.prune(0.4, 0.8)))
    assert few.replacement <= some.replacement <= full.replacement
    assert few.completeness <= some.completeness <= full.completeness


def test_pruning_keeps_tokens_targets_and_connected_features(pruned, graph):
    assert len(pruned.of_kind("token")) == len(graph.of_kind("token"))
    assert len(pruned.of_kind("logit")) == len(graph.of_kind("logit"))
    folded = set(pruned.of_kind("rest").tolist())
    for i in pruned.of_kind("neuron", "latent").tolist():
        assert (pruned.edges.source == i).any()
        assert set(pruned.edges.source[pruned.edges.target == i].tolist()) - folded


def test_pruning_nothing_keeps_all_edges_between_kept_nodes(graph):
    whole = graph.prune(1.0, 1.0)
    assert len(whole.of_kind("neuron", "latent")) == len(graph.of_kind("neuron", "latent"))
    assert whole.scores().replacement == pytest.approx(graph.scores().replacement, abs=1e-12)


@pytest.mark.parametrize("n", [1, 20])
def test_paths_are_the_strongest_of_all(n):
    """Against the list of every path in a graph small enough to walk."""
    graph = trace(boot("llama"), prompt(4), targets=[7], max_features=8)
    shares = dense(graph)

    def walk(node):
        if graph.nodes[node].kind == "token":
            yield (node,), 1.0
        for source in shares[node].nonzero()[:, 0].tolist():
            for path, strength in walk(source):
                yield (*path, node), strength * float(shares[node, source])

    every = sorted(walk(len(graph) - 1), key=lambda pair: -pair[1])
    found = paths(graph, n)
    assert len(every) > 20
    tails = [nodes[1:] for nodes, _ in every[:n]]
    assert n == 1 or len(set(tails)) < n  # the second best path into some feature is among them
    assert [path.nodes for path in found] == [nodes for nodes, _ in every[:n]]
    assert [path.strength for path in found] == pytest.approx([strength for _, strength in every[:n]], rel=1e-12)
    first = found[0]
    assert first.weights == tuple(float(row(graph, t)[s]) for s, t in zip(first.nodes, first.nodes[1:], strict=False))


def row(graph, target):
    mine = graph.edges.target == target
    return dict(zip(graph.edges.source[mine].tolist(), graph.edges.weight[mine], strict=True))


def test_paths_by_hand():
    best = small().paths(5)
    assert [(path.nodes, path.weights) for path in best] == [((0, 2, 3), (2.0, 3.0)), ((0, 3), (1.0,))]
    assert [path.strength for path in best] == pytest.approx([0.375, 0.25])
    assert str(best[0]) == "0.3750  'a'@0 →(+2) L1 neuron 7@0 →(+3) 'b'"


def test_files_round_trip_exactly(graph, pruned, tmp_path):
    for one in (graph, pruned, small()):
        back = Graph.load(one.save(tmp_path / "x.graph"))
        assert back.nodes == one.nodes
        assert back.metadata == one.metadata
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(back.edges, one.edges, strict=True))
        assert torch.equal(back.row_values.nan_to_num(-1), one.row_values.nan_to_num(-1))
        assert back.row_values.dtype == one.row_values.dtype


def test_truncated_files_are_refused(graph, tmp_path):
    data = graph.save(tmp_path / "x.graph").read_bytes()
    for length in (0, 5, 200, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.graph").write_bytes(data[:length])
        with pytest.raises(UserError, match="expected a graph file"):
            Graph.load(tmp_path / "cut.graph")
    with pytest.raises(UserError, match="expected a graph file"):
        Graph.load(tmp_path / "absent.graph")


@pytest.mark.parametrize(
    "damage",
    [
        "cycle",
        "outside",
        "negative",
        "nan",
        "short",
        "labels",
        "kind",
        "dtype",
        "missing",
        "schema",
        "no header",
        "not json",
    ],
)
def test_inconsistent_files_are_refused(graph, tmp_path, damage):
    path = graph.save(tmp_path / "x.graph")
    tensors = load_file(path)
    header = {"schema": 1, "labels": [node.label for node in graph.nodes], "metadata": {}}
    match damage:
        case "cycle":
            tensors["source"][3] = tensors["target"][3]
        case "outside":
            tensors["target"][-1] = len(graph) + 7
        case "negative":
            tensors["source"][0] = -1
        case "nan":
            tensors["weight"][0] = float("nan")
        case "short":
            tensors["weight"] = tensors["weight"][:-1]
        case "labels":
            header["labels"] = header["labels"][1:]
        case "kind":
            tensors["kind"][0] = 77
        case "dtype":
            tensors["target"] = tensors["target"].double()
        case "missing":
            del tensors["amount"]
        case "schema":
            header["schema"] = 99
    text = {"no header": {}, "not json": {"unweave_graph": "{"}}.get(damage, {"unweave_graph": json.dumps(header)})
    save_file(tensors, path, metadata=text)
    with pytest.raises(UserError, match="expected a graph file"):
        Graph.load(path)


def test_a_graph_says_what_it_is(graph):
    text = repr(graph)
    assert f"{len(graph.edges.weight):,} edges; residual" in text
    assert "target 'w" in text
    assert len(graph.table(5).splitlines()) == 6
    target = graph.of_kind("logit")[0]
    incoming = graph.incoming(int(target))
    assert abs(incoming[0][1]) >= abs(incoming[-1][1])
    assert len(incoming) == int((graph.edges.target == target).sum())


@pytest.mark.parametrize("arguments", [{"nodes": 1.5}, {"edges": -0.1}])
def test_prune_refuses_shares_outside_0_and_1(graph, arguments):
    with pytest.raises(UserError, match="share from 0 to 1"):
        graph.prune(**arguments)


def test_paths_refuse_a_leaf_as_target(graph):
    with pytest.raises(UserError, match="incoming edges"):
        graph.paths(5, target=0)
