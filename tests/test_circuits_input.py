"""What `trace` accepts, and the clear error for everything else."""

import subprocess
import sys

import pytest
import torch
from toys import VOCAB, boot, prompt, transcoder
from unweave.circuits import trace
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
        (torch.tensor([5]), "at least 2 tokens"),
        (torch.zeros(0, dtype=torch.int64), "at least 2 tokens"),
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
        ([], "list of tokens"),
    ],
)
def test_targets_that_are_no_tokens(model, targets, message):
    with pytest.raises(UserError, match=message):
        trace(model, prompt(), targets=targets)


def test_max_features_below_1(model):
    with pytest.raises(UserError, match="max_features"):
        trace(model, prompt(), max_features=0)


def test_half_precision_is_refused():
    with pytest.raises(UserError, match=r"float32 or float64; got torch\.bfloat16"):
        trace(boot("llama", dtype=torch.bfloat16), prompt())


def with_sites(dictionary, site, site_out):
    import dataclasses

    dictionary.config = dataclasses.replace(dictionary.config, site=(site,), site_out=(site_out,))
    return dictionary


@pytest.mark.parametrize(
    ("dictionaries", "message"),
    [
        (lambda: [transcoder(7)], "MLP transcoder of one of 3 layers"),
        (lambda: [with_sites(transcoder(1), "blocks.1.hook_resid_post", "blocks.1.hook_resid_post")], "MLP transcoder"),
        (lambda: [with_sites(transcoder(1), "blocks.1.mlp.hook_in", "blocks.2.mlp.hook_out")], "MLP transcoder"),
        (lambda: [transcoder(1), transcoder(1, seed=1)], "two for block 1"),
        (lambda: [transcoder(1, metadata={"model": {"name": "other", "fingerprint": "0" * 32}})], "trained on other"),
    ],
)
def test_dictionaries_that_do_not_fit(model, dictionaries, message):
    with pytest.raises(UserError, match=message):
        trace(model, prompt(), dictionaries())


def test_a_dictionary_of_this_model_is_accepted_and_named(model):
    mine = transcoder(1, metadata={"model": model_info(model).dict()})
    graph = trace(model, prompt(), [mine], max_features=10)
    assert graph.metadata["dictionaries"][0] | {"folder": None} == {
        "site": "blocks.1.mlp.hook_in",
        "site_out": "blocks.1.mlp.hook_out",
        "fingerprint": mine.fingerprint,
        "folder": None,
    }


def test_an_mlp_that_is_no_sum_of_neurons_needs_a_transcoder(model, monkeypatch):
    from unweave.circuits import sources

    monkeypatch.setattr(sources, "_is_sum_of_neurons", lambda block: False)
    with pytest.raises(UserError, match=r"block 0.*give a transcoder"):
        trace(model, prompt(), [transcoder(1)])
    graph = trace(model, prompt(), [transcoder(layer) for layer in range(3)], max_features=20)
    assert graph.residual <= 1e-12
    assert not len(graph.of_kind("neuron"))


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
