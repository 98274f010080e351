"""I5: an edge is the sum of its parts through the heads of one layer and of what bypasses them, on ten architectures."""

from dataclasses import replace

import pytest
import torch
import toys
from unweave.circuits import Graph, trace
from unweave.circuits.attention.again import take_up
from unweave.circuits.attention.head_rows import split_rows
from unweave.circuits.attention.heads import HeadShare, HeadSplit, attach_heads, split_heads
from unweave.circuits.attention.reads import HeadReads, head_reads, induction_pairs, previous_pairs
from unweave.circuits.graph import Node
from unweave.circuits.targets import Direction, FeatureAt
from unweave.saes.errors import UserError

PROMPT = toys.prompt(5)


def mixed():
    """Cuts at every attention stage and in the stream, and a cross-layer transcoder with skip paths."""
    return [
        toys.part("blocks.0.attn.hook_z", seed=1),
        toys.part("blocks.1.hook_attn_out", seed=4),
        toys.part("blocks.2.hook_resid_pre", seed=3),
        *toys.clt(skip=True),
    ]


def edges(graph, split):
    """The graph's edges as [target source]."""
    dense = torch.zeros(len(graph), len(graph), dtype=torch.float64)
    dense[graph.edges.target.long(), graph.edges.source.long()] = graph.edges.weight.double()
    return dense[list(split.target)][:, split.source]


def together(split):
    return split.weights.sum(2) + split.bypass


def with_rows(graph):
    return [i for i, node in enumerate(graph.nodes) if node.is_feature or node.weight]


def equal(ours, theirs, tolerance=1e-10):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("given", [list, mixed], ids=["neurons", "mixed"])
@pytest.mark.parametrize("name", toys.ARCHITECTURES)
def test_I5_parts_sum_to_the_edge_at_every_layer(name, given):
    model, given = toys.boot(name), given()
    graph = trace(model, PROMPT, given, max_features=60)
    split = split_heads(graph, model, given, targets=with_rows(graph))
    assert split.layers == (0, 1, 2)
    assert split.weights.shape[:3] == (len(split.target), 3, 4)
    equal(together(split), edges(graph, split)[:, None].expand(-1, 3, -1))
    assert float(split.weights.abs().max()) > 0.01


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "phi"])
def test_a_part_is_what_pushing_the_source_through_that_head_alone_does(name):
    model = toys.boot(name)
    graph = trace(model, PROMPT, targets=[5], neurons="none")
    split = split_heads(graph, model)
    machine = take_up(graph, model).machine
    blocks, final = machine.frozen.blocks, machine.frozen.final
    W_U = machine.frozen.W_U
    wanted = W_U[:, 5] - W_U.mean(1)
    for layer in range(3):
        for head in range(4):
            kept = blocks[layer]._replace(W_O=blocks[layer].W_O * (torch.arange(4) == head)[:, None, None])
            for position in (0, 3):
                stream = torch.zeros_like(machine.frozen.embed)
                stream[position] = machine.frozen.embed[position]
                for below in range(layer):
                    stream = stream + blocks[below].attention(stream)
                stream = kept.attention(stream)
                for above in range(layer + 1, 3):
                    stream = stream + blocks[above].attention(stream)
                place = split.source.tolist().index(position)
                equal(split.weights[0, layer, head, place], final.linear(stream)[-1] @ wanted)


def test_a_wrong_head_breaks_the_sum():
    model = toys.boot("llama")
    graph = trace(model, PROMPT, targets=[5])
    again = take_up(graph, model)
    row = [each for each in again.rows if len(graph) - 1 in each.nodes.tolist()]
    block = again.machine.frozen.blocks[1]
    for W_V, closes in ((block.W_V, True), (block.W_V * torch.tensor([1.0, 1.01])[:, None, None], False)):
        blocks = [block._replace(W_V=W_V) if each is block else each for each in again.machine.frozen.blocks]
        machine = again.machine._replace(frozen=again.machine.frozen._replace(blocks=blocks))
        (parts,) = split_rows(machine, again.layout.columns, row, 1, 64)
        off = abs(float(parts.heads.sum() + parts.bypass.sum() - graph.row_values[-1]))
        assert (off < 1e-10) is closes


@pytest.mark.parametrize("given", [list, mixed], ids=["neurons", "mixed"])
def test_parts_of_a_pruned_graph_sum_to_its_edges_and_its_two_rest_leaves_together(given):
    model, given = toys.boot("gpt2"), given()
    graph = trace(model, PROMPT, given, max_features=60).prune(0.6, 0.8)
    split = split_heads(graph, model, given, targets=with_rows(graph))
    rest = torch.tensor([graph.nodes[i].layer == -1 and graph.nodes[i].kind == "rest" for i in split.source.tolist()])
    ours, theirs = together(split), edges(graph, split)[:, None].expand(-1, 3, -1)
    assert rest.sum() == 2
    equal(ours[..., ~rest], theirs[..., ~rest])
    equal(ours[..., rest].sum(-1), theirs[..., rest].sum(-1))


def test_parts_of_a_graph_with_bounded_edges_sum_to_what_is_left_of_them():
    model = toys.boot("llama")
    graph = trace(model, PROMPT, max_features=60, max_edges=1500)
    split = split_heads(graph, model)
    equal(together(split).sum(-1), edges(graph, split).sum(-1)[:, None].expand(-1, 3))


def test_values_biases_go_with_the_heads_and_output_biases_past_them():
    model = toys.boot("gpt2")
    graph = trace(model, PROMPT, targets=[5], neurons="none")
    split = split_heads(graph, model)
    block = take_up(graph, model).machine.frozen.blocks[2]
    place = next(
        i for i, s in enumerate(split.source.tolist()) if (graph.nodes[s].kind, graph.nodes[s].layer) == ("bias", 2)
    )
    final, W_U = take_up(graph, model).machine.frozen.final, model.unembed.W_U
    wanted = W_U[:, 5] - W_U.mean(1)
    constant = block.z_constant().unflatten(1, (4, -1))
    for head in range(4):
        equal(split.weights[0, 2, head, place], final.linear(constant[:, head] @ block.W_O[head])[-1] @ wanted)


def test_where_the_attention_is_cut_everything_from_above_bypasses_it_and_the_cut_latents_are_split():
    model, given = toys.boot("llama"), [toys.part("blocks.1.attn.hook_out")]
    graph = trace(model, PROMPT, given, max_features=10_000)
    latent = next(i for i, node in enumerate(graph.nodes) if node.kind == "latent" and node.position == 4)
    split = split_heads(graph, model, given, targets=[latent, len(graph) - 1], layers=[1])
    assert float(split.weights[1].abs().max()) == 0
    tokens = [place for place, source in enumerate(split.source.tolist()) if graph.nodes[source].kind == "token"]
    assert float(split.weights[0][..., tokens].abs().max()) > 0
    assert float(split.bypass[0][..., tokens].abs().max()) == 0


def test_targets_inside_the_model_are_split_too():
    model, vector = toys.boot("qwen3"), torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = [Direction(vector, "blocks.1.hook_resid_mid", 3), FeatureAt("blocks.2.mlp.hook_post", 7, 2), (5, 6)]
    graph = trace(model, PROMPT, targets=targets, max_features=30)
    split = split_heads(graph, model)
    assert len(split.target) == 3
    equal(together(split), edges(graph, split)[:, None].expand(-1, 3, -1))
    assert float(split.weights[0, 2].abs().max()) == 0  # the direction is read below layer 2's attention


def test_parts_named_targets_layers_and_sources_are_slices_of_the_whole_in_any_batching():
    model = toys.boot("neox")
    graph = trace(model, PROMPT, max_features=40)
    whole = split_heads(graph, model, targets=with_rows(graph))
    targets, sources = [whole.target[3], whole.target[-1]], [0, 2]
    some = split_heads(graph, model, targets=targets, layers=[2, 0], sources=sources, memory_mib=1)
    for mine, target in enumerate(targets):
        theirs = whole.weights[whole.target.index(target)][[2, 0]][:, :, sources]
        equal(some.weights[mine], theirs, 1e-12)


def test_neurons_traced_in_two_are_split_by_their_factors():
    model = toys.boot("llama")
    graph = trace(model, PROMPT, max_features=20, neurons="rows")
    split = split_heads(graph, model, targets=graph.of_kind("gate", "up").tolist())
    equal(together(split), edges(graph, split)[:, None].expand(-1, len(split.layers), -1))
    with pytest.raises(UserError, match="gate and up"):
        split_heads(graph, model, targets=graph.of_kind("neuron").tolist())


def handmade():
    nodes = (
        Node("token", -1, 0, 1, 1.0, "a"),
        Node("token", -1, 1, 2, 1.0, "b"),
        Node("logit", 1, 1, 3, 4.0, "c", weight=1.0),
    )
    weights = torch.tensor([[[[1.0, 2.0], [-1.0, 0.5]]]], dtype=torch.float64)
    return HeadSplit(
        nodes, (2,), (0,), torch.tensor([0, 1]), weights, torch.tensor([[[1.0, 0.5]]], dtype=torch.float64)
    )


def test_shares_of_heads_by_hand():
    split = handmade()  # total 4, absolute 6
    assert split.heads() == [HeadShare(0, 0, 3 / 4), HeadShare(0, 1, -0.5 / 4)]
    assert split.heads("absolute") == [HeadShare(0, 0, 3 / 6), HeadShare(0, 1, 1.5 / 6)]
    assert split.heads(positions=[1]) == [HeadShare(0, 0, 2 / 4), HeadShare(0, 1, 0.5 / 4)]
    assert "L0H0" in split.table().splitlines()[1]
    with pytest.raises(UserError, match="absolute"):
        split.heads("both")


def test_attached_heads_are_the_largest_and_are_saved(tmp_path):
    model = toys.boot("gpt2")
    graph = trace(model, PROMPT, max_features=20)
    split = split_heads(graph, model)
    back = Graph.load(attach_heads(graph, split, 7).save(tmp_path / "heads.graph"))
    entries = back.metadata["heads"]
    sizes = [sum(map(abs, entry["heads"])) for entry in entries]
    assert len(entries) == 7
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == pytest.approx(float(split.weights.abs().sum(2).max()))
    weight = {(t, s): w for t, s, w in zip(*(column.tolist() for column in back.edges), strict=True)}
    for entry in entries:
        assert sum(entry["heads"]) + entry["bypass"] == pytest.approx(
            weight[entry["target"], entry["source"]], abs=1e-10
        )
    with pytest.raises(UserError, match="split of this graph"):
        attach_heads(graph.prune(), split)


@pytest.mark.parametrize("name, given", [("gpt2", list), ("gemma2", list), ("neox", mixed), ("qwen3", mixed)])
def test_reads_are_the_head_parts_of_all_rows_weighted_by_total_attribution(name, given):
    model, given, prompt, targets = toys.boot(name), given(), toys.prompt(3), [5, (7, 9)]
    graph = trace(model, prompt, given, targets=targets, max_features=100_000)
    rows = with_rows(graph)
    value, total = graph.row_values[rows], graph.column("attribution")[rows]
    rate = torch.where(
        value == 0, 0, torch.where(graph.column("weight")[rows] > 0, graph.column("weight")[rows], total / value)
    )
    split = split_heads(graph, model, given, targets=rows)
    reads = head_reads(model, prompt, given, targets)
    equal(reads.weights.sum((2, 3)), torch.einsum("t,tlhs->lh", rate, split.weights))
    assert reads.value == pytest.approx(sum(node.weight * node.value for node in graph.nodes))
    assert not reads.weights.triu(1).any()


def test_pairs_of_positions_and_shares_of_reads_by_hand():
    tokens = torch.tensor([0, 7, 8, 7, 8])
    assert induction_pairs(tokens).nonzero().tolist() == [[3, 2], [4, 3]]
    assert previous_pairs(tokens).nonzero().tolist() == [[2, 1], [3, 2], [4, 3]]
    weights = torch.zeros(1, 2, 5, 5, dtype=torch.float64)
    weights[0, 0, 3, 2], weights[0, 0, 3, 1], weights[0, 0, 4, 3], weights[0, 1, 2, 1] = -3.0, 1.0, 2.0, 5.0
    reads = HeadReads(tokens, 10.0, weights)
    assert reads.heads(by="total") == [HeadShare(0, 1, 0.5), HeadShare(0, 0, 0.0)]
    assert reads.heads(induction_pairs(tokens), "own") == [HeadShare(0, 0, (3 / 4 + 1) / 2), HeadShare(0, 1, 0.0)]
    assert reads.heads(induction_pairs(tokens)) == [HeadShare(0, 0, -0.1), HeadShare(0, 1, 0.0)]
    with pytest.raises(UserError, match="mask"):
        reads.heads(torch.zeros(5, 5, dtype=torch.bool))


@pytest.fixture(scope="module")
def llama():
    model = toys.boot("llama")
    return model, trace(model, PROMPT, [toys.part("blocks.1.mlp.hook_in", "blocks.1.mlp.hook_out")], max_features=20)


@pytest.mark.parametrize(
    "options, wanted",
    [
        (dict(layers=[3]), "layers from 0 to 2"),
        (dict(layers=[]), "layers from 0 to 2"),
        (dict(targets=[10_000]), "different indices"),
        (dict(targets=[]), "different indices"),
        (dict(targets=[0]), "row of their own"),
        (dict(sources=[-1]), "sources from 0"),
        (dict(memory_mib=0), "memory_mib"),
    ],
)
def test_what_is_not_there_is_refused(llama, options, wanted):
    with pytest.raises(UserError, match=wanted):
        split_heads(llama[1], llama[0], [toys.part("blocks.1.mlp.hook_in", "blocks.1.mlp.hook_out")], **options)


def test_another_model_or_other_dictionaries_are_refused(llama):
    model, graph = llama
    given = [toys.part("blocks.1.mlp.hook_in", "blocks.1.mlp.hook_out")]
    with pytest.raises(UserError, match="the model that the graph was traced with"):
        split_heads(graph, toys.boot("llama", seed=1), given)
    more = split_heads(graph, model, [*given, toys.part("blocks.2.hook_resid_pre")])
    assert torch.equal(
        more.weights, split_heads(graph, model, given).weights
    )  # what was not traced with it is left out
    for other in ([], [replace(given[0], b_enc=given[0].b_enc + 1)]):
        with pytest.raises(UserError, match="the dictionaries that the graph was traced with"):
            split_heads(graph, model, other)
    bare = Graph(list(graph.nodes), graph.edges, graph.row_values, {})
    with pytest.raises(UserError, match="made by trace"):
        split_heads(bare, model, given)
