"""`validate` measures what ablation does, compares the right numbers, and names what is not to be trusted."""

import json
import math

import pytest
import torch
from toys import WIDTH, boot, prompt, transcoder
from unweave.circuits import Edges, Graph, Node, ablate, trace, validate
from unweave.circuits.experiment.cautions import agreement_cautions, graph_cautions, shortcut_cautions
from unweave.circuits.experiment.edits import Catalogue, Edit
from unweave.circuits.experiment.effects import Outcome, direct_effects, total_effects
from unweave.circuits.experiment.interventions import intervene
from unweave.circuits.experiment.statistics import Agreement, agreement, cosine, normalised_error, spearman
from unweave.circuits.parts import Part, Rule
from unweave.saes.errors import UserError


@pytest.fixture(scope="module")
def traced():
    """A model, its transcoder, a graph of 60 features, and its validation."""
    model, tokens, dictionaries = boot("gpt2"), prompt(), [transcoder(1)]
    graph = trace(model, tokens, dictionaries, max_features=60)
    return model, dictionaries, graph, validate(graph, model, dictionaries, edges=8, top=5)


def outcome(graph, logits):
    """The weighted, centred targets of last-position logits (no model here caps them)."""
    centred = logits - logits.mean()
    return sum(target["weight"] * float(centred[target["ids"][0]]) for target in graph.metadata["targets"])


def test_single_effects_are_what_ablate_does(traced):
    model, dictionaries, graph, report = traced
    tokens = torch.tensor(graph.metadata["tokens"])
    before = outcome(graph, model(tokens[None])[0, -1])
    rows = [*zip(report.nodes, report.predicted, report.measured, strict=True)]
    rows += zip(report.suspects, report.suspect_predicted, report.suspect_measured, strict=True)
    for i, predicted, measured in rows:
        after = outcome(graph, ablate(model, tokens, [graph.nodes[i]], dictionaries)[-1])
        assert measured == pytest.approx(after - before, abs=1e-9)
        assert predicted == -graph.nodes[i].attribution
    assert len(report.nodes) == 8
    assert not set(report.nodes) & set(report.suspects)
    together = [graph.nodes[i] for i in report.path_nodes]
    after = outcome(graph, ablate(model, tokens, together, dictionaries)[-1])
    assert report.path_measured == pytest.approx(after - before, abs=1e-9)


def test_pairs_are_edges_and_measure_what_the_targets_row_loses(traced):
    model, dictionaries, graph, report = traced
    tokens, part = torch.tensor(graph.metadata["tokens"]), dictionaries[0]
    pairs = report.pairs
    sources = sorted(set(pairs.sources))
    direct, total = direct_effects(graph, sources), total_effects(graph, sources)
    read = ["blocks.1.mlp.hook_in", *(f"blocks.{layer}.mlp.hook_pre" for layer in range(3))]
    before = intervene(model, tokens, [], dictionaries, read=read).activations
    for column, (source, target, measured) in enumerate(zip(pairs.sources, pairs.targets, pairs.measured, strict=True)):
        node = graph.nodes[target]
        after = intervene(model, tokens, Edit(graph.nodes[source]), dictionaries, read=read).activations
        if node.kind == "latent":
            change = part.W_enc[node.index] @ (after[read[0]] - before[read[0]])[node.position]
        else:
            change = (after[read[1 + node.layer]] - before[read[1 + node.layer]])[node.position, node.index]
        assert measured == pytest.approx(float(change), abs=1e-9)
        place = target, sources.index(source)
        assert pairs.direct[column] == float(direct[place]) != 0
        assert pairs.predicted[column] == pytest.approx(float(total[place]), abs=1e-12)
    assert len(pairs.sources) == 8
    assert report.reselection is not None
    assert report.reselection.count > 0


def test_the_frozen_check_sees_a_wrong_edge(traced):
    model, dictionaries, graph, report = traced
    assert report.frozen < 1e-9
    assert not any("not this model's" in warning for warning in report.warnings)
    weight = graph.edges.weight.clone()
    weight[graph.edges.target == report.pairs.targets[0]] *= 1.5
    wrong = Graph(
        list(graph.nodes), Edges(graph.edges.target, graph.edges.source, weight), graph.row_values, graph.metadata
    )
    said = validate(wrong, model, dictionaries, edges=8, top=5, curve=False)
    assert said.frozen > 0.01
    assert any("not this model's" in warning for warning in said.warnings)
    assert any("ledger does not close" in warning for warning in said.warnings)


@pytest.mark.parametrize("name", ["llama", "gemma3", "opt"])
def test_every_kind_of_neuron_is_checked_frozen(name):
    model = boot(name)
    report = validate(trace(model, prompt(), max_features=40), model, edges=6, top=3)
    assert report.frozen < 1e-8
    assert report.reselection is None


def test_a_report_is_a_function_of_its_seed_and_prints_and_becomes_json(traced):
    model, dictionaries, graph, report = traced
    assert report == validate(graph, model, dictionaries, edges=8, top=5, seed=0)
    assert report.nodes != validate(graph, model, dictionaries, edges=8, top=5, seed=1, curve=False).nodes
    assert report.interval[0] <= report.spearman <= report.interval[1]
    text = str(report)
    for word in ("Spearman", "matched controls", "feature → feature", "CMD", "everything frozen", "re-selection"):
        assert word in text
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["spearman"] == report.spearman
    assert data["curve"]["cmd"] == report.curve.cmd
    assert data["pairs"]["measured"] == list(report.pairs.measured)


def test_controls_match_in_layer_position_and_size(traced):
    model, dictionaries, graph, _ = traced
    from unweave.circuits.experiment.experiments import controls

    top = [node for node in graph.nodes if node.is_feature][:12]
    tokens = torch.tensor(graph.metadata["tokens"])
    for control in controls(Catalogue(model, dictionaries), tokens, top, torch.Generator().manual_seed(0)):
        assert [(n.kind, n.layer, n.position) for n in control] == [(n.kind, n.layer, n.position) for n in top]
        assert not {(n.layer, n.position, n.index) for n in control} & {(n.layer, n.position, n.index) for n in top}
        neurons = [(a, b) for a, b in zip(control, top, strict=True) if a.kind == "neuron"]
        assert len(neurons) > 5
        assert sum(abs(abs(a.value) - abs(b.value)) for a, b in neurons) < 0.3 * sum(abs(b.value) for _, b in neurons)


def test_constrained_patching_holds_the_blocks_after_each_feature(traced):
    model, dictionaries, graph, free = traced
    tokens = torch.tensor(graph.metadata["tokens"])
    report = validate(graph, model, dictionaries, edges=8, top=5, constrained=1, curve=False)
    before = outcome(graph, model(tokens[None])[0, -1])
    for i, measured in zip(report.nodes, report.measured, strict=True):
        blocks = range(graph.nodes[i].layer, min(graph.nodes[i].layer + 2, 3))
        after = intervene(model, tokens, Edit(graph.nodes[i]), dictionaries, constrained=blocks).logits[-1]
        assert measured == pytest.approx(outcome(graph, after) - before, abs=1e-9)
    assert report.nodes == free.nodes
    assert report.measured != free.measured


def test_features_and_directions_are_measured_as_targets():
    model, tokens = boot("gpt2"), prompt()
    graph = trace(model, tokens, max_features=30)
    vector = torch.randn(WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    direction = {"vector": vector.tolist(), "site": "blocks.2.hook_resid_pre", "position": -1, "bias": 1.0}
    targets = [
        {"ids": [], "weight": 0.5, "feature": ["blocks.1.mlp.hook_post", 3, -2]},
        {"ids": [], "weight": 2.0, "direction": direction},
        {"ids": [5, 9], "weight": 1.0},
    ]
    graph = Graph(list(graph.nodes), graph.edges, graph.row_values, graph.metadata | {"targets": targets})
    value = Outcome(graph, Catalogue(model))
    logits, cache = model.run_with_cache(tokens[None])
    expected = 0.5 * cache["blocks.1.mlp.hook_pre"][0, -2, 3] + logits[0, -1, 5] - logits[0, -1, 9]
    expected += 2 * (cache["blocks.2.hook_resid_pre"][0, -1] @ vector + 1)
    assert float(value(logits[:, -1], {site: cache[site] for site in value.sites})) == pytest.approx(float(expected))


def boolean():
    """AND(OR(x1, x2), OR(x3, x4)) in OPT's ReLU MLPs, and a cross-layer transcoder that takes a shortcut; the prompt.

    Block 0 writes the ORs to dimensions 4 and 5, block 1 their AND to 6. The prompt's last token has x1 = x3 = 1; of a pair
    at most one is set, so that OR is a sum. Large constants in dimensions 8.. make the norms' scale constant, dimension 7
    keeps the mean at 0. Latents 0 and 1 are the ORs, latent 2 the AND, read in block 0 and written in block 1.
    """
    model = boot("opt")
    parameters = dict(model.named_parameters())
    for name, weight in parameters.items():
        weight.fill_(1.0) if "norm" in name and name.endswith("weight") else weight.zero_()
    table = parameters["model.decoder.embed_tokens._original_component.weight"]
    table[:, 8::2], table[:, 9::2] = 10.0, -10.0
    gain = float(table[0].square().mean().sqrt())  # what the norms divide by
    table[8, [0, 2, 7]] += torch.tensor([1.0, 1.0, -2.0], dtype=torch.float64)
    table[5, 6] = 8.0  # the answer's unembedding, since OPT ties the two
    write = torch.tensor([1.0, -1.0], dtype=torch.float64)
    first, second = model.blocks[0].mlp, model.blocks[1].mlp
    for neuron, read, to in ((0, [0, 1], 4), (1, [2, 3], 5)):
        first.W_in[read, neuron] = gain
        first.W_out[neuron, [to, 7]] = write
    second.W_in[[4, 5], 0], second.b_in[0] = gain, -1.0
    second.W_out[0, [6, 7]] = write
    W_enc = torch.zeros(3, WIDTH, dtype=torch.float64)
    W_enc[0, :2] = W_enc[1, 2:4] = W_enc[2, :4] = gain
    W_dec = {f"blocks.{layer}.mlp.hook_out": torch.zeros(3, WIDTH, dtype=torch.float64) for layer in (0, 1)}
    early, late = W_dec.values()
    early[0, [4, 7]] = early[1, [5, 7]] = late[2, [6, 7]] = write
    bias = torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64)
    return model, torch.tensor([0, 8]), Part("blocks.0.mlp.hook_in", W_enc, bias, W_dec, {}, Rule("relu"))


def test_validate_exposes_a_shortcut():
    """Lange et al. 2026: a cross-layer transcoder that writes the AND straight from the inputs, past the ORs that make it.

    It reconstructs well and the ledger closes, but the ORs that the model needs have no part in the graph.
    """
    model, tokens, clt = boolean()
    graph = trace(model, tokens, [clt], targets=[5])
    report = validate(graph, model, [clt], edges=3, top=1, curve=False)
    rows = zip(report.nodes, report.predicted, report.measured, strict=True)
    effects = {graph.nodes[i].index: (predicted, measured) for i, predicted, measured in rows}
    assert graph.residual < 1e-10
    assert effects[2][0] == pytest.approx(effects[2][1], rel=0.02)
    for either in (0, 1):
        assert abs(effects[either][0]) < 0.01 * abs(effects[2][0])
        assert effects[either][1] == pytest.approx(effects[2][1], rel=0.02)
    warning = next(text for text in report.warnings if "matter more than the graph says" in text)
    assert [f"L0 latent {i} @" in warning for i in range(3)] == [True, True, False]


def test_cautions_name_what_they_saw(traced):
    _, _, graph, _ = traced
    names = [i for i, node in enumerate(graph.nodes) if node.is_feature][:4]
    found = shortcut_cautions(graph, names, [-5.0, 0.1, -4.0, -1.0], [-5.0, -4.0, 0.2, -1.1])
    assert graph.nodes[names[1]].label in found[0]
    assert graph.nodes[names[2]].label in found[1]
    assert "more than the graph says" in found[0]
    assert "less than the graph says" in found[1]
    assert not shortcut_cautions(graph, names, [-5.0, 0.1, -4.0, -1.0], [-5.0, -0.1, -3.0, -1.1])
    nodes = [
        Node("token", -1, 0, 3, 1.0, "w3"),
        Node("error", 0, 0, -1, 1.0, "error"),
        Node("logit", 1, 0, 5, 10.0, "w5", 0, 1.0),
    ]
    edges = Edges(torch.tensor([2, 2]), torch.tensor([0, 1]), torch.tensor([1.0, 9.0]))
    said = graph_cautions(Graph(nodes, edges, torch.tensor([math.nan, math.nan, 10.0]), {}))
    assert [text.split()[0] for text in said] == ["only", "90%"]
    assert "10% of the influence reaches the tokens" in said[0]
    assert "reconstruction errors" in said[1]

    def judged(value, low, high):
        return agreement_cautions("x", Agreement(9, value, (low, high), 0.0, (0.0, 0.0), 0.0, (0.0, 0.0)))

    assert "negatively" in judged(-0.5, -0.8, 0.1)[0]
    assert "no rank agreement" in judged(0.2, -0.1, 0.5)[0]
    assert judged(0.7, 0.4, 0.9) == []


def test_validate_refuses_other_models_and_missing_dictionaries(traced):
    model, dictionaries, graph, _ = traced
    with pytest.raises(UserError, match="model that the graph was traced with"):
        validate(graph, boot("gpt2", seed=1), dictionaries)
    with pytest.raises(UserError, match="dictionaries that the graph was traced with"):
        validate(graph, model)
    with pytest.raises(UserError, match="at least 3 features"):
        validate(trace(model, prompt(), max_features=2), model)
    with pytest.raises(UserError, match="made by trace"):
        validate(Graph(list(graph.nodes), graph.edges, graph.row_values, {}), model)


def test_spearman_by_hand():
    def of(a, b):
        return spearman(torch.tensor(a), torch.tensor(b))

    assert of([1.0, 2.0, 3.0], [10.0, 100.0, 1000.0]) == pytest.approx(1.0)
    assert of([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == pytest.approx(-1.0)
    # Ranks 1 2 3 4 5 against 2 1 4 3 5: 1 - 6 * 4 / (5 * 24).
    assert of([1.0, 2.0, 3.0, 4.0, 5.0], [0.2, 0.1, 0.4, 0.3, 0.5]) == pytest.approx(0.8)
    # The tie shares rank 1.5: ranks 1.5 1.5 3 against 1 2 3.
    assert of([1.0, 1.0, 2.0], [1.0, 2.0, 3.0]) == pytest.approx(1.5 / (1.5 * 2.0) ** 0.5)
    # Ranks 1.5 1.5 3 4 against 1 2 3 4.
    assert of([1.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]) == pytest.approx(4.5 / (4.5 * 5.0) ** 0.5)
    assert of([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) == 0.0


def test_cosine_and_normalised_error_by_hand():
    predicted, measured, nothing = torch.tensor([3.0, 4.0]), torch.tensor([6.0, 8.0]), torch.zeros(2)
    assert cosine(predicted, measured) == pytest.approx(1.0)
    assert cosine(predicted, torch.tensor([-4.0, 3.0])) == pytest.approx(0.0)
    assert cosine(predicted, nothing) == 0.0
    assert normalised_error(predicted, measured) == pytest.approx(0.25)
    assert normalised_error(nothing, measured) == 1.0
    assert normalised_error(nothing, nothing) == 0.0
    assert normalised_error(predicted, nothing) == math.inf


def test_intervals_narrow_with_more_items_and_hold_the_truth():
    generator = torch.Generator().manual_seed(0)
    widths = []
    for count in (20, 500):
        truth = torch.randn(count, dtype=torch.float64, generator=generator)
        noisy = truth + torch.randn(count, dtype=torch.float64, generator=generator)
        found = agreement(truth, noisy, generator)
        assert found.cosine_interval[0] <= 0.5**0.5 <= found.cosine_interval[1]
        assert found.spearman_interval[0] <= found.spearman <= found.spearman_interval[1]
        widths.append(found.cosine_interval[1] - found.cosine_interval[0])
    assert widths[1] < widths[0] / 2
