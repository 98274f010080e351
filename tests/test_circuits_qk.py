"""I6: a head's score before its cap is the sum over pairs of nodes, on ten architectures and more."""

import pytest
import torch
import toys
from unweave.circuits import trace
from unweave.circuits.attention import bilinear
from unweave.circuits.attention.qk import Pair, QKTable, qk_table, split_score
from unweave.circuits.graph import Node
from unweave.circuits.tracing.frozen import run
from unweave.circuits.tracing.machine import build_machine
from unweave.saes.errors import UserError

PROMPT = toys.prompt(6)
PLACES = ((0, 1, 4, 2), (1, 2, 5, 3), (2, 3, -1, -2))  # layer, head, query, key


def mixed():
    return [
        toys.part("blocks.0.attn.hook_z", seed=1),
        toys.part("blocks.1.hook_attn_out", seed=4),
        toys.part("blocks.1.hook_resid_pre", seed=3),
        *toys.clt(skip=True),
    ]


def shown_score(model, layer, head, query, key):
    name = f"blocks.{layer}.attn.hook_attn_scores"
    return float(run(model, PROMPT, [name])[0][name][head, query, key])


@pytest.mark.parametrize("given", [list, mixed], ids=["neurons", "mixed"])
@pytest.mark.parametrize("name", toys.ARCHITECTURES)
def test_I6_pairs_sum_to_the_score_and_the_score_is_the_models(name, given):
    """Queries, keys and caps as the model has them; its own q/k-norms and caps are of float32, OPT shows no scores."""
    model, given = toys.boot(name), given()
    for place in PLACES:
        table = qk_table(model, PROMPT, *place, given, max_features=60)
        assert abs(table.sum() - table.score) < 1e-10
        assert float(table.query_marginals().sum()) == pytest.approx(table.score, abs=1e-10)
        assert float(table.key_marginals().sum()) == pytest.approx(table.score, abs=1e-10)
        capped = (
            table.score
            if table.cap is None
            else table.cap * float(torch.tensor(table.score / table.cap).double().tanh())
        )
        tolerance = 1e-6 if name in ("qwen3", "gemma3", "gemma2") else 1e-12
        assert name == "opt" or abs(capped - shown_score(model, *place)) < tolerance


def test_the_cap_is_left_out_of_the_score():
    table = qk_table(toys.boot("gemma2"), PROMPT, 1, 2, 5, 3)
    assert table.cap == 5.0


def extra(name):
    import transformers as tf

    ids = dict(bos_token_id=0, eos_token_id=1, vocab_size=toys.VOCAB, hidden_size=toys.WIDTH)
    heads = dict(num_hidden_layers=3, num_attention_heads=4)
    llama = dict(**ids, **heads, intermediate_size=96, num_key_value_heads=2, pad_token_id=1)
    return {
        "falcon": lambda: (tf.FalconConfig(**ids, **heads, alibi=True, multi_query=True), tf.FalconForCausalLM),
        "cohere": lambda: (tf.CohereConfig(**llama, use_qk_norm=True), tf.CohereForCausalLM),
        "gptj": lambda: (tf.GPTJConfig(**ids, n_layer=3, n_head=4, rotary_dim=8, n_positions=64), tf.GPTJForCausalLM),
    }[name]  # fmt: skip


def test_alibi_and_norms_of_each_head_are_found_and_other_rotations_refused(monkeypatch):
    known = toys.configs()
    monkeypatch.setattr(toys, "configs", lambda: known | {name: extra(name) for name in ("falcon", "cohere", "gptj")})
    for name, tolerance in (("falcon", 1e-12), ("cohere", 1e-6)):
        model = toys.boot(name)
        for place in PLACES[:2]:
            table = qk_table(model, PROMPT, *place, max_features=40)
            assert abs(table.sum() - table.score) < 1e-10
            assert abs(table.score - shown_score(model, *place)) < tolerance
            assert (table.alibi > 0) is (name == "falcon")
    with pytest.raises(UserError, match="gptj-tiny"):
        qk_table(toys.boot("gptj"), PROMPT, 1, 2, 5, 3)


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox", "qwen3", "gemma2"])
def test_a_pair_is_what_its_two_vectors_make_of_the_score(name):
    """Push a token's embedding to each side, project, and let the model's own pair of positions turn them."""
    model = toys.boot(name)
    machine = build_machine(model, PROMPT, [])
    layer, head, query, key = 1, 2, 5, 3
    table = qk_table(model, PROMPT, layer, head, query, key, max_features=40)
    form, block = bilinear.bilinear(model, machine.frozen, layer, head), machine.frozen.blocks[layer]

    def side(which, place, position):
        stream = torch.zeros_like(machine.frozen.embed)
        stream[place] = machine.frozen.embed[place]
        stream = stream + machine.frozen.blocks[0].attention(stream)
        return which.map[position] @ (block.attn_norm.linear(stream)[position] @ which.W)

    ours = table.contributions(range(6), range(6))
    theirs = torch.stack([
        torch.stack([form.scale * side(form.query, i, query) @ side(form.key, j, key) for j in range(6)]) for i in range(6)
    ])  # fmt: skip
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert float(ours[:4, :4].abs().max()) > 1e-6


def test_the_largest_pairs_are_named():
    table = qk_table(toys.boot("llama"), PROMPT, 2, 1, 4, 2, max_features=700, n=9)
    size = table.query_factors @ table.key_factors.T
    best = size.flatten().abs().topk(9).values
    assert len(table.nodes) > 600  # more than one block of pairs
    torch.testing.assert_close(
        torch.tensor([abs(pair.contribution) for pair in table.pairs], dtype=torch.float64), best
    )
    assert all(float(size[pair.query, pair.key]) == pytest.approx(pair.contribution) for pair in table.pairs)
    assert len(table.table().splitlines()) == 11


def test_features_are_chosen_by_their_direct_effect_on_the_score():
    model = toys.boot("gemma3")
    few, all_ = (qk_table(model, PROMPT, 2, 1, 4, 2, max_features=count) for count in (5, 100_000))
    effect = all_.query_marginals() + all_.key_marginals()
    features = [i for i, node in enumerate(all_.nodes) if node.is_feature]
    best = sorted(features, key=lambda i: -abs(float(effect[i])))[:5]
    assert {all_.nodes[i].label for i in best} == {node.label for node in few.nodes if node.is_feature}
    assert abs(few.sum() - all_.sum()) < 1e-12


@pytest.mark.parametrize("given", [list, mixed], ids=["neurons", "mixed"])
def test_nodes_of_a_graph_are_used_and_what_it_pruned_is_counted(given):
    model, given = toys.boot("gpt2"), given()
    graph = trace(model, PROMPT, given, max_features=60)
    for each in (graph, graph.prune(0.6, 0.8)):
        table = qk_table(model, None, 2, 1, 4, 2, given, graph=each)
        assert abs(table.sum() - table.score) < 1e-10
        named = [(i, place) for i, place in enumerate(table.graph_nodes) if place >= 0]
        assert {place for _, place in named} >= set(each.of_kind("neuron", "latent").tolist())
        assert all(table.nodes[i].label == each.nodes[place].label for i, place in named)
    assert -1 in table.graph_nodes


@pytest.mark.parametrize("given", [list, mixed], ids=["neurons", "mixed"])
@pytest.mark.parametrize("side", ["query", "key"])
@pytest.mark.parametrize("name", ["gpt2", "qwen3", "phi", "gemma2"])
def test_a_score_is_split_over_the_heads_below_on_either_side(name, side, given):
    model, given = toys.boot(name), given()
    table = qk_table(model, PROMPT, 2, 3, 5, 3, given, max_features=50)
    split = split_score(model, PROMPT, 2, 3, 5, 3, given, side=side, max_features=50)
    together = split.weights.sum(2) + split.bypass
    assert split.layers == (0, 1)
    assert split.nodes[split.target[0]].value == pytest.approx(table.score)
    assert float((together.sum(-1) - table.score).abs().max()) < 1e-10
    marginals = table.query_marginals() if side == "query" else table.key_marginals()
    torch.testing.assert_close(together[0], marginals.expand(2, -1), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "hook, change, why",
    [
        ("hook_sin", lambda value: -value, "softmax"),
        ("hook_cos", lambda value: value.flip(0), "softmax"),
        ("hook_q", lambda value: value + 0.1, "not a projection"),
        ("hook_attn_scores", lambda value: value + 0.1, "softmax"),
    ],
)
def test_a_score_that_is_not_the_models_is_refused(monkeypatch, hook, change, why):
    def altered(*arguments):
        seen, logits = run(*arguments)
        return {name: change(value) if name.endswith(hook) else value for name, value in seen.items()}, logits

    monkeypatch.setattr(bilinear, "run", altered)
    with pytest.raises(UserError, match=f"llama-tiny.*{why}"):
        qk_table(toys.boot("llama"), PROMPT, 1, 2, 5, 3)


def test_tracing_results_in_neuronpedias_form_by_hand():
    nodes = tuple(Node("token", -1, place, place, 1.0, str(place)) for place in range(3))
    query, key = torch.tensor([[1.0, 0], [0, 2], [0, 0]]).double(), torch.tensor([[0.0, 0], [3, 1], [0, -1]]).double()
    pairs = (Pair(0, 1, 3.0), Pair(1, 1, 2.0), Pair(1, 2, -2.0))
    table = QKTable(0, 0, 1, 1, 3.0, 0.0, None, nodes, (-1,) * 3, pairs, query, key)
    assert table.sum() == 3.0
    assert table.tracing_results(["a", "b", "c"], 2) == {
        "pair_wise_contributors": [["a", "b", 3.0], ["b", "b", 2.0]],
        "top_q_marginal_contributors": [["a", 3.0]],
        "top_k_marginal_contributors": [["b", 5.0], ["c", -2.0]],
    }


@pytest.mark.parametrize(
    "place, wanted",
    [
        ((3, 0, 1, 1), "layer from 0 to 2"),
        ((-1, 0, 1, 1), "layer from 0 to 2"),
        ((0, 4, 1, 1), "head from 0 to 3"),
        ((0, 0, 6, 1), "positions from -6 to 5"),
        ((0, 0, 1, -7), "positions from -6 to 5"),
        ((0, 0, 2, 3), "masked"),
        ((0, 0, 5, 1), "masked"),  # outside the sliding window of 4
    ],
)
def test_what_is_not_there_is_refused(place, wanted):
    with pytest.raises(UserError, match=wanted):
        qk_table(toys.boot("mistral"), PROMPT, *place)


def test_a_split_of_a_score_needs_a_side_and_layers_below():
    model = toys.boot("llama")
    for options, wanted in (
        (dict(side="value"), "'query' or 'key'"),
        (dict(layers=[2]), "layers below 2"),
        (dict(layers=[]), "below 2"),
    ):
        with pytest.raises(UserError, match=wanted):
            split_score(model, PROMPT, 2, 0, 4, 2, **options)


def test_either_a_prompt_or_a_graph_is_needed():
    with pytest.raises(UserError, match="both or neither"):
        qk_table(toys.boot("llama"), None, 0, 0, 1, 1)


def test_a_prompt_of_one_token_has_one_score():
    table = qk_table(toys.boot("llama"), PROMPT[:1], 1, 0, 0, 0)
    assert abs(table.sum() - table.score) < 1e-10
