"""What `trace` accepts, and the clear error for everything else."""

import subprocess
import sys

import pytest
import torch
from toys import VOCAB, boot, part, prompt, transcoder
from unweave.circuits import trace
from unweave.circuits.tracing import machine
from unweave.saes import model_info
from unweave.saes.errors import UserError


@pytest.fixture(scope="module")
def model():
    return boot("llama")


def logits_of(graph):
    return [node for node in graph.nodes if node.kind == "logit"]


def test_text_and_its_tokens_give_one_graph(model):
    text, ids = trace(model, "w5 w6 w7", max_features=5), trace(model, torch.tensor([0, 5, 6, 7]), max_features=5)
    assert text.nodes == ids.nodes
    assert torch.equal(text.edges.weight, ids.edges.weight)
    assert text.metadata["prompt"] == "w5 w6 w7"
    assert text.metadata["tokens"] == [0, 5, 6, 7]
    assert text.metadata["token_strings"] == ["<s>", "w5", "w6", "w7"]
    assert text.metadata["model"] == model_info(model).dict()


def test_default_targets_are_the_likeliest_tokens(model):
    graph = trace(model, prompt(), max_features=5)
    probabilities = model(prompt()[None])[0, -1].softmax(-1)
    weights = [node.weight for node in logits_of(graph)]
    expected = probabilities.topk(len(weights))
    assert [node.index for node in logits_of(graph)] == expected.indices.tolist()
    assert weights == pytest.approx(expected.values.tolist(), rel=1e-5)
    assert len(weights) == 10 or sum(weights) >= 0.95 > sum(weights[:-1])


def test_a_difference_is_the_difference_of_its_rows(model):
    """Row of (a - b) = row of a - row of b, leaf by leaf (leaves do not depend on which features were chosen)."""
    graph = trace(model, prompt(), targets=["w5", 9, ("w5", 9)], max_features=10)
    first, second, both = (i for i, node in enumerate(graph.nodes) if node.kind == "logit")
    assert [graph.nodes[i].label for i in (first, second, both)] == ["w5", "w9", "w5 − w9"]
    rows = torch.zeros(3, len(graph), dtype=torch.float64)
    for place, target in enumerate((first, second, both)):
        mine = graph.edges.target == target
        rows[place, graph.edges.source[mine]] = graph.edges.weight[mine]
    torch.testing.assert_close(rows[2], rows[0] - rows[1], rtol=0, atol=1e-12)
    assert graph.nodes[first].weight == pytest.approx(1 / 3)


def test_chosen_features_have_the_largest_total_attribution(model):
    few, many = trace(model, prompt(), max_features=10), trace(model, prompt(), max_features=10_000)
    ranked = sorted((node for node in many.nodes if node.is_feature), key=lambda node: -abs(node.attribution))[:10]
    key = [(node.layer, node.position, node.index) for node in ranked]
    assert {(node.layer, node.position, node.index) for node in few.nodes if node.is_feature} == set(key)


def test_no_features_at_position_0(model):
    assert all(node.position > 0 for node in trace(model, prompt(), max_features=10_000).nodes if node.is_feature)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "at least one token"),
        (torch.zeros(0, dtype=torch.int64), "at least 1 token"),
        (torch.arange(65), "at most 64 tokens"),
        (torch.tensor([0, VOCAB]), "token ids from 0 to 99"),
        (torch.tensor([0, -1]), "token ids from 0 to 99"),
        (torch.tensor([[0, 1]]), "one prompt at a time"),
        (torch.tensor([0.0, 1.0]), "text or as token ids"),
    ],
)
def test_prompts_that_cannot_be_traced(model, given, message):
    with pytest.raises(UserError, match=message):
        trace(model, given)


@pytest.mark.parametrize("options", [{}, {"select": "influence"}, {"neurons": "rows"}, {"neurons": "none"}])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_prompt_of_one_token_is_all_leaves_of_position_0(name, options):
    given = [transcoder(1, skip=True), part("blocks.0.hook_attn_out"), part("blocks.2.hook_resid_post", seed=1)]
    for dictionaries in ([], given):
        graph = trace(boot(name), torch.tensor([5]), dictionaries, **options)
        assert graph.residual <= 1e-12
        assert {node.position for node in graph.nodes if node.kind not in ("bias", "rest")} == {0}
        assert not [node for node in graph.nodes if node.is_feature]
        reached = {graph.nodes[source].kind for source in graph.edges.source.tolist()}
        assert reached <= {"token", "position", "bias", "first"} and "first" in reached


def test_the_shortest_and_the_longest_prompt(model):
    assert trace(model, "w5", max_features=10).residual <= 1e-12
    assert trace(model, prompt(64), max_features=10).residual <= 1e-12


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["w5 w6"], "one token"),
        (["nonsense"], "one token"),
        ([VOCAB], "token id from 0"),
        ([("w5", "w6", "w7")], "pair"),
        ([], "list of targets"),
        ("w5", "list of targets"),
        ([True], "token string or id"),
    ],
)
def test_targets_that_are_no_tokens(model, targets, message):
    with pytest.raises(UserError, match=message):
        trace(model, prompt(), targets=targets)


@pytest.mark.parametrize("name", ["max_features", "memory_mib", "max_edges"])
@pytest.mark.parametrize("value", [0, -3, True])
def test_bounds_below_1(model, name, value):
    with pytest.raises(UserError, match=f"expected {name} of at least 1"):
        trace(model, prompt(), **{name: value})


def test_half_precision_is_refused():
    with pytest.raises(UserError, match=r"float32 or float64; got torch\.bfloat16"):
        trace(boot("llama", dtype=torch.bfloat16), prompt())


def with_sites(dictionary, site, site_out):
    import dataclasses

    config = dataclasses.replace(dictionary.config, site=(site,), site_out=(site_out,))
    return type(dictionary)(config, dict(dictionary.named_parameters()), dictionary.metadata)


@pytest.mark.parametrize(
    ("dictionaries", "message"),
    [
        (lambda: [transcoder(7)], r"expected a site of this model; got 'blocks\.7"),
        (
            lambda: [with_sites(transcoder(1), "blocks.1.mlp.hook_in", "blocks.0.mlp.hook_out")],
            "or a transcoder from an MLP's input to MLP outputs of its layer or later ones",
        ),
        (lambda: [transcoder(1), transcoder(1, seed=1)], "at most one dictionary per layer and site.*of block 1"),
        (
            lambda: [part("blocks.1.mlp.hook_out"), part("blocks.1.mlp.hook_out", seed=1)],
            "at most one dictionary per layer and site",
        ),
        (lambda: [transcoder(1, metadata={"model": {"name": "other", "fingerprint": "0" * 32}})], "trained on other"),
        (lambda: [part("blocks.1.attn.hook_z", "blocks.1.mlp.hook_out")], "from an MLP's input"),
        (lambda: [part("blocks.1.hook_resid_pre", "blocks.1.mlp.hook_out", skip=True)], "W_skip"),
        (lambda: [part("blocks.0.mlp.hook_in", "blocks.1.mlp.hook_out", skip=True)], "W_skip"),
        (lambda: [part("blocks.1.mlp.hook_out", skip=True)], "W_skip"),
        (lambda: "blocks.1", "expected a Dictionary, a Part or a list of them; got str"),
    ],
)
def test_dictionaries_that_do_not_fit(model, dictionaries, message):
    with pytest.raises(UserError, match=message):
        trace(model, prompt(), dictionaries())


@pytest.mark.parametrize("order", [1, -1])
def test_what_an_mlp_adds_is_taken_apart_once(order):
    """Of a dictionary that reads it and a transcoder that writes it, behind a post-norm, only one; in either order."""
    given = [part("blocks.1.hook_mlp_out"), part("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out", seed=3)]
    with pytest.raises(UserError, match="at most one dictionary per layer and site"):
        trace(boot("gemma2"), prompt(), given[::order])


def test_an_sae_below_what_a_transcoder_writes_still_has_rows():
    """Behind a post-norm the two stand at different stations; the SAE's rows end at the MLP's whole output."""
    given = [part("blocks.1.mlp.hook_out"), part("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out", seed=3)]
    assert trace(boot("gemma2"), prompt(), given).residual <= 1e-12


def test_a_dictionary_of_this_model_is_accepted_and_named(model):
    mine = transcoder(1, metadata={"model": model_info(model).dict()})
    graph = trace(model, prompt(), [mine], max_features=10)
    assert graph.metadata["dictionaries"][0] | {"folder": None} == {
        "site": "blocks.1.mlp.hook_in",
        "site_out": "blocks.1.mlp.hook_out",
        "sites_out": ["blocks.1.mlp.hook_out"],
        "fingerprint": mine.fingerprint,
        "folder": None,
    }


def test_an_mlp_that_is_no_sum_of_neurons_needs_a_transcoder(model, monkeypatch):
    monkeypatch.setattr(machine, "is_sum_of_neurons", lambda block: False)
    with pytest.raises(UserError, match=r"block 0.*give a transcoder"):
        trace(model, prompt(), [transcoder(1)])
    graph = trace(model, prompt(), [transcoder(layer) for layer in range(3)], max_features=20)
    assert graph.residual <= 1e-12
    assert not len(graph.of_kind("neuron"))
    whole = trace(model, prompt(), neurons="none")
    assert whole.residual <= 1e-12
    assert {node.layer for node in whole.nodes if node.kind == "error"} == {0, 1, 2}


def test_nan_in_the_activations():
    broken = boot("llama")
    broken.blocks[1].mlp.W_out[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"NaN or infinity at blocks\.1\."):
        trace(broken, prompt())


def test_import_is_cheap():
    code = "import sys, unweave.circuits; print([name for name in ('transformer_lens', 'transformers', 'plotly') if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
