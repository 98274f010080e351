"""The bundled language model: the ledger closes in float32, and the circuit is real."""

import pytest
import torch
from unweave.circuits import Graph, ablate, trace, validate
from unweave.saes import to_tokens


@pytest.fixture(scope="module")
def graph(smollm2):
    return trace(smollm2, "The capital of France is", max_features=64)


def test_the_ledger_closes(graph):
    """Position 0 carries norms of 20,000 here."""
    assert graph.residual <= 1e-5
    assert next(node.label for node in graph.nodes if node.kind == "logit") == " Paris"
    assert graph.metadata["token_strings"] == ["<|endoftext|>", "The", " capital", " of", " France", " is"]


def test_total_attribution_is_conserved(graph):
    leaves = sum(node.attribution for node in graph.nodes if node.kind in ("token", "bias", "first"))
    targets = sum(node.weight * node.value for node in graph.nodes if node.kind == "logit")
    assert leaves == pytest.approx(targets, rel=1e-3)


def test_ablating_the_top_20_takes_the_answer_away(smollm2, graph):
    tokens = to_tokens(smollm2, "The capital of France is")
    paris = next(node.index for node in graph.nodes if node.kind == "logit")
    top = sorted((node for node in graph.nodes if node.is_feature), key=lambda node: -node.attribution)[:20]
    with torch.no_grad():
        before = smollm2(tokens[None])[0, -1].softmax(-1)[paris]
    after = ablate(smollm2, tokens, top)[-1].softmax(-1)[paris]
    assert float(before) > 0.7
    assert float(after) < 0.1


def test_ablations_agree_with_the_graph_and_matched_controls_do_not(smollm2, graph):
    report = validate(graph, smollm2, edges=16)
    assert report.spearman > 0.3
    assert report.top_measured < -5
    assert abs(report.top_measured) > 3 * max(abs(value) for value in report.control_measured)


def test_files_round_trip(graph, tmp_path):
    back = Graph.load(graph.save(tmp_path / "france.graph"))
    assert back.nodes == graph.nodes
    assert torch.equal(back.edges.weight, graph.edges.weight)
    assert back.residual == graph.residual


@pytest.mark.parametrize(
    "prompt, targets",
    [
        ("The capital of France is", None),
        ("The keys to the cabinet", [(" are", " is")]),
        ("When Mary and John went to the store, John gave a drink to", [(" Mary", " John")]),
        ("Grace Park met Linda Brown. Later that day Grace", [(" Park", " Brown")]),
    ],
)
def test_the_strongest_paths_survive_ablation_better_than_random_circuits_of_the_same_size(smollm2, prompt, targets):
    """Recall, agreement, and two kinds of copying: what the graph names moves the targets more than any matched control."""
    graph = trace(smollm2, prompt, targets=targets, max_features=1024)
    report = validate(graph, smollm2, edges=32, curve=False)
    assert graph.residual <= 1e-5
    assert report.path_measured < min(report.path_control_measured) - 1
    assert report.top_measured < min(report.control_measured) - 2
    assert report.interval[0] > 0.3
    assert report.frozen < 1e-4
