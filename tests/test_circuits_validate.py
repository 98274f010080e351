"""Interventions do what they say in the real model, and `validate` compares the right numbers."""

import pytest
import torch
from toys import ARCHITECTURES, boot, prompt, transcoder
from unweave.circuits import Graph, Node, ablate, steer, trace, validate
from unweave.circuits.validate import spearman
from unweave.saes.errors import UserError


def neuron(layer=2, position=5, index=7):
    return Node("neuron", layer, position, index, 1.0, f"L{layer} neuron {index}")


def features_of(graph, kind):
    return [node for node in graph.nodes if node.kind == kind]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ablating_a_neuron_is_zeroing_its_row_of_W_out(name):
    """At the last position of the last layer nothing else reads the neuron, so the two must agree there."""
    model, tokens = boot(name), prompt()
    ablated, before = ablate(model, tokens, [neuron()]), model(tokens[None])[0]
    row = model.blocks[2].mlp.W_out[7]
    row.zero_()
    torch.testing.assert_close(ablated[-1], model(tokens[None])[0, -1], rtol=0, atol=1e-12)
    torch.testing.assert_close(ablated[:-1], before[:-1], rtol=0, atol=0)
    assert (ablated[-1] - before[-1]).abs().max() > 1e-3


def test_ablating_in_a_middle_layer_reaches_later_positions():
    model, tokens = boot("llama"), prompt()
    change = (ablate(model, tokens, [neuron(0, 2)]) - model(tokens[None])[0]).abs().amax(1)
    assert (change[:2] == 0).all()
    assert (change[2:] > 1e-6).all()


@pytest.mark.parametrize("kind", ["neuron", "latent"])
def test_steering_by_1_changes_nothing(kind):
    model, tokens, dictionaries = boot("gpt2"), prompt(), [transcoder(1, skip=True)]
    node = features_of(trace(model, tokens, dictionaries, max_features=200), kind)[0]
    before = model(tokens[None])[0]
    torch.testing.assert_close(steer(model, tokens, [node], 1.0, dictionaries), before, rtol=0, atol=1e-12)
    assert (steer(model, tokens, [node], 2.0, dictionaries) - before).abs().max() > 1e-4


def test_ablating_a_latent_takes_its_part_out_of_the_mlp_output():
    model, tokens, dictionary = boot("neox"), prompt(), transcoder(1)
    node = features_of(trace(model, tokens, [dictionary], max_features=500), "latent")[-1]
    _, cache = model.run_with_cache(tokens[None])
    codes = dictionary.encode(cache["blocks.1.mlp.hook_in"][0])
    value = codes.values[node.position][codes.indices[node.position] == node.index].sum()
    assert float(value) == pytest.approx(node.value)

    def subtract(out, hook):
        out = out.clone()
        out[0, node.position] -= value * dictionary.W_dec[node.index]
        return out

    expected = model.run_with_hooks(tokens[None], fwd_hooks=[("blocks.1.mlp.hook_out", subtract)])[0]
    torch.testing.assert_close(ablate(model, tokens, [node], [dictionary]), expected, rtol=0, atol=1e-12)


def test_an_absent_latent_cannot_be_ablated_into_anything():
    """Its value in this run is 0, so nothing changes."""
    model, tokens, dictionary = boot("llama"), prompt(), transcoder(1)
    _, cache = model.run_with_cache(tokens[None])
    active = set(dictionary.encode(cache["blocks.1.mlp.hook_in"][0]).indices[3].tolist())
    absent = next(latent for latent in range(80) if latent not in active)
    node = Node("latent", 1, 3, absent, 1.0, "absent")
    torch.testing.assert_close(ablate(model, tokens, [node], [dictionary]), model(tokens[None])[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (Node("error", 1, 2, -1, 1.0, "error"), "got the error node"),
        (neuron(layer=9), "inside the prompt and the model"),
        (neuron(position=6), "inside the prompt and the model"),
        (neuron(index=4000), "index below 96"),
        (Node("latent", 1, 2, 3, 1.0, "L1 latent 3"), "dictionary of block 1"),
    ],
)
def test_what_cannot_be_ablated(node, message):
    with pytest.raises(UserError, match=message):
        ablate(boot("llama"), prompt(), [node])


def test_predictions_in_the_last_layer_are_exact_but_for_the_final_norms_scale():
    """A neuron of the last layer acts on the logits through the final norm alone; put its scale back and they agree."""
    model, tokens = boot("gpt2"), prompt()
    graph = trace(model, tokens, targets=[("w5", "w9")], max_features=10_000)
    node = max(
        (node for node in features_of(graph, "neuron") if node.layer == 2 and node.position == 5),
        key=lambda node: node.value,
    )

    def run(nodes):
        scales = []
        with torch.no_grad():
            mlp = ("blocks.2.mlp.hook_post", lambda post, hook: post * (torch.arange(post.shape[-1]) != nodes))
            model.run_with_hooks(
                tokens[None],
                fwd_hooks=[mlp, ("ln_final.hook_scale", lambda scale, hook: scales.append(scale[0, -1, 0]))],
            )
        return scales[0]

    difference = model.unembed.W_U[:, 5] - model.unembed.W_U[:, 9]
    constant = model.ln_final.bias @ difference + model.unembed.b_U[5] - model.unembed.b_U[9]
    before, after = (
        logits[-1, 5] - logits[-1, 9] - constant for logits in (model(tokens[None])[0], ablate(model, tokens, [node]))
    )
    measured = after * run(node.index) / run(-1) - before
    assert float(measured) == pytest.approx(-node.attribution, abs=1e-10)
    assert abs(node.attribution) > 0.01


def test_validate_measures_what_ablate_does():
    model, tokens, dictionaries = boot("llama"), prompt(), [transcoder(1)]
    graph = trace(model, tokens, dictionaries, max_features=60)
    report = validate(graph, model, dictionaries, edges=8, top=5)
    before = model(tokens[None])[0, -1]
    for i, predicted, measured in zip(report.nodes, report.predicted, report.measured, strict=True):
        change = ablate(model, tokens, [graph.nodes[i]], dictionaries)[-1] - before
        expected = sum(
            target["weight"] * float(change[target["ids"][0]] - change.mean()) for target in graph.metadata["targets"]
        )
        assert measured == pytest.approx(expected, abs=1e-6)
        assert predicted == -graph.nodes[i].attribution
    assert len(report.nodes) == 8
    assert len(report.control_measured) == 5
    assert report.interval[0] <= report.spearman <= report.interval[1]
    assert report == validate(graph, model, dictionaries, edges=8, top=5, seed=0)
    assert "Spearman" in str(report)
    assert "matched controls" in str(report)


def test_validate_refuses_other_models_and_missing_dictionaries():
    model, tokens, dictionaries = boot("llama"), prompt(), [transcoder(1)]
    graph = trace(model, tokens, dictionaries, max_features=60)
    with pytest.raises(UserError, match="model that the graph was traced with"):
        validate(graph, boot("llama", seed=1), dictionaries)
    with pytest.raises(UserError, match="dictionaries that the graph was traced with"):
        validate(graph, model)
    with pytest.raises(UserError, match="at least 3 features"):
        validate(trace(model, tokens, max_features=2), model)
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
    assert of([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) == 0.0
