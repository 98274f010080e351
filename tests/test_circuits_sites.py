"""Dictionaries at every site, alone and mixed: the ledger closes, and every edge is what pushing its source does."""

import pytest
import torch
import toys
from unweave.circuits import trace
from unweave.circuits.parts import Rule, parts
from unweave.circuits.tracing.layout import choose, lay_out
from unweave.circuits.tracing.machine import build_machine
from unweave.circuits.tracing.sweep import Totals
from unweave.circuits.tracing.wanted import resolve, seeds
from unweave.saes.errors import UserError

SEQUENTIAL = [name for name in toys.ARCHITECTURES if name not in ("neox", "phi")]
STREAM = ("hook_resid_pre", "hook_resid_post")
SITES = (*STREAM, "hook_attn_out", "attn.hook_out", "attn.hook_z", "hook_mlp_out", "mlp.hook_out")


def closes(graph) -> bool:
    return graph.residual < 1e-10


@pytest.mark.parametrize("architecture", toys.ARCHITECTURES)
@pytest.mark.parametrize("site", SITES)
def test_the_ledger_closes_with_an_sae_at_any_site(architecture, site):
    model = toys.boot(architecture)
    graph = trace(model, toys.prompt(6), [toys.part(f"blocks.1.{site}")], max_features=150)
    latents = [place for place, node in enumerate(graph.nodes) if node.kind == "latent"]
    assert closes(graph)
    assert latents and set(graph.edges.target.tolist()) >= set(latents)
    assert set(graph.edges.source.tolist()) & set(latents)


@pytest.mark.parametrize("architecture", SEQUENTIAL)
def test_the_ledger_closes_with_an_sae_between_attention_and_mlp(architecture):
    assert closes(trace(toys.boot(architecture), toys.prompt(6), [toys.part("blocks.1.hook_resid_mid")]))


@pytest.mark.parametrize("architecture", toys.ARCHITECTURES)
@pytest.mark.parametrize("write", ["mlp.hook_out", "hook_mlp_out"])
def test_the_ledger_closes_with_a_cross_layer_transcoder(architecture, write):
    model = toys.boot(architecture)
    graph = trace(model, toys.prompt(6), toys.clt(write=write))
    assert closes(graph)
    assert {node.kind for node in graph.nodes} >= {"latent", "error"}
    assert "neuron" not in {node.kind for node in graph.nodes}


@pytest.mark.parametrize("architecture", toys.ARCHITECTURES)
def test_the_ledger_closes_with_everything_mixed(architecture):
    model = toys.boot(architecture)
    given = [
        toys.part("blocks.0.attn.hook_z", seed=1),
        toys.part("blocks.0.mlp.hook_in", "blocks.0.mlp.hook_out", skip=True, seed=2, rule=Rule("relu")),
        toys.part("blocks.1.hook_resid_pre", seed=3),
        toys.part(
            "blocks.1.hook_attn_out",
            seed=4,
            rule=Rule("jumprelu", threshold=torch.full((60,), 0.4, dtype=torch.float64)),
        ),
        toys.part("blocks.2.mlp.hook_out", seed=5),
        toys.part("blocks.2.hook_resid_post", seed=6),
    ]
    for select in ("attribution", "influence"):
        graph = trace(model, toys.prompt(6), given, max_features=100, select=select)
        assert closes(graph)
        sites = {node.site for node in graph.nodes if node.kind == "latent"}
        assert len(sites) >= 4


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "phi"])
def test_total_attribution_is_conserved_by_the_leaves_through_any_cut(architecture):
    model, tokens = toys.boot(architecture), toys.prompt(6)
    given = [toys.part("blocks.1.hook_resid_pre", seed=3), toys.part("blocks.1.attn.hook_z"), *toys.clt()]
    machine = build_machine(model, tokens, parts(given))
    wanted = resolve(model, machine, [5])
    rows = seeds(model, machine, wanted, True)
    totals = Totals(machine, [seed for seed, _ in rows])
    leaves = [
        totals.token,
        *totals.error.values(),
        *(torch.tensor(leaf, dtype=torch.float64) for leaf in (totals.bias, list(totals.first.values()))),
    ]
    leaves += [] if totals.position is None else [totals.position]
    value = rows[0][1].build(torch.tensor([0])).value
    torch.testing.assert_close(sum(leaf.sum() for leaf in leaves), value[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_total_attribution_of_a_feature_is_the_sum_over_its_paths(architecture):
    model, tokens = toys.boot(architecture), toys.prompt(5)
    graph = trace(model, tokens, [toys.part("blocks.1.hook_resid_pre"), *toys.clt()], targets=[5], max_features=10_000)
    share = torch.zeros(len(graph), len(graph), dtype=torch.float64)
    values = torch.where(graph.row_values.isnan() | (graph.row_values == 0), 1.0, graph.row_values)
    share[graph.edges.target.long(), graph.edges.source.long()] = graph.edges.weight
    through = torch.zeros(len(graph), dtype=torch.float64)
    for place in reversed(range(len(graph))):
        node = graph.nodes[place]
        arrived = node.weight * graph.row_values[place] if node.kind == "logit" else through[place]
        through += share[place] * arrived / values[place]
        if node.kind == "latent":
            assert abs(float(arrived) - node.attribution) < 1e-9


def test_a_dictionary_of_the_stream_is_a_complete_cut():
    graph = trace(toys.boot("llama"), toys.prompt(6), [toys.part("blocks.1.hook_resid_post")], max_features=10_000)
    below = {
        place
        for place, node in enumerate(graph.nodes)
        if node.kind == "token" or (node.layer in (0, 1) and node.kind == "neuron")
    }
    above = {
        place
        for place, node in enumerate(graph.nodes)
        if node.kind == "logit" or (node.layer == 2 and node.kind == "neuron")
    }
    crossing = [
        (s, t)
        for s, t in zip(graph.edges.source.tolist(), graph.edges.target.tolist(), strict=True)
        if s in below and t in above
    ]
    assert not crossing


def test_neurons_below_an_sae_of_the_mlp_output_feed_only_its_latents():
    graph = trace(toys.boot("llama"), toys.prompt(6), [toys.part("blocks.1.mlp.hook_out")], max_features=10_000)
    layer = {place: node for place, node in enumerate(graph.nodes) if node.layer == 1}
    fed = {graph.nodes[t].kind for s, t in zip(graph.edges.source.tolist(), graph.edges.target.tolist(), strict=True)
           if s in layer and layer[s].kind == "neuron"}  # fmt: skip
    assert fed == {"latent"}


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "qwen3", "neox"])
def test_an_edge_is_what_adding_its_source_to_the_stream_does(architecture):
    """Push one latent's vector forwards through the frozen maps; compare with every row's edge from it."""
    model, tokens = toys.boot(architecture), toys.prompt(6)
    given = parts(
        [toys.part("blocks.0.mlp.hook_in", "blocks.0.mlp.hook_out"), toys.part("blocks.2.hook_resid_post", seed=4)]
    )
    machine = build_machine(model, tokens, given, "none")
    graph = trace(model, tokens, given, neurons="none", max_features=1000)
    source, sae = machine.sources
    place = next(i for i, node in enumerate(graph.nodes) if node.site == source.site and node.position == 3)
    node = graph.nodes[place]
    slot = source.indices[3].tolist().index(node.index)
    push = torch.zeros_like(machine.frozen.embed)
    push[3] = source.vectors(source.writes[0], torch.tensor([3]), torch.tensor([slot]))[0]
    blocks = machine.frozen.blocks
    stream = blocks[0].mlp_post.linear(push) if blocks[0].mlp_post else push
    for block in blocks[1:]:
        stream = stream + block.attention(stream)
    edges = dict(
        zip(
            zip(graph.edges.target.tolist(), graph.edges.source.tolist(), strict=True),
            graph.edges.weight.tolist(),
            strict=True,
        )
    )
    compared = 0
    for row, target in enumerate(graph.nodes):
        if target.kind == "latent" and target.site == sae.site:
            expected = float(sae.W_enc[target.index] @ stream[target.position])
            assert abs(edges.get((row, place), 0.0) - expected) < 1e-10
            compared += 1
    assert compared > 10


def test_a_row_read_before_its_source_is_written_has_no_edge_from_it():
    graph = trace(
        toys.boot("gemma3"), toys.prompt(6), [*toys.clt(), toys.part("blocks.2.attn.hook_z")], max_features=10_000
    )
    for source, target in zip(graph.edges.source.tolist(), graph.edges.target.tolist(), strict=True):
        if graph.nodes[source].position > graph.nodes[target].position >= 0 and graph.nodes[source].kind == "latent":
            raise AssertionError("an edge from a later position")


def test_norm_free_reading_is_the_same_as_reading_through_the_gain():
    model, tokens = toys.boot("llama"), toys.prompt(6)
    plain = toys.part("blocks.1.ln2.hook_normalized", "blocks.1.mlp.hook_out")
    gain = model.blocks[1].ln2.weight
    from dataclasses import replace

    same = replace(plain, read="blocks.1.mlp.hook_in", W_enc=plain.W_enc / gain)
    one, two = (trace(model, tokens, [part], max_features=10_000) for part in (plain, same))
    torch.testing.assert_close(one.edges.weight, two.edges.weight, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "given, wanted",
    [
        (lambda: [toys.part("blocks.1.hook_resid_pre"), toys.part("blocks.0.hook_resid_post", seed=2)], "at most one"),
        (lambda: [toys.part("blocks.1.mlp.hook_in", "blocks.1.mlp.hook_out")] * 2, "at most one"),
        (lambda: [toys.part("blocks.1.mlp.hook_in", "blocks.0.mlp.hook_out")], "expected an SAE"),
        (lambda: [toys.part("blocks.1.hook_resid_pre", "blocks.1.hook_resid_post")], "expected an SAE"),
        (lambda: [toys.part("blocks.1.attn.hook_q")], "can be traced"),
        (lambda: [toys.part("blocks.9.hook_resid_pre")], "expected a site"),
        (lambda: [toys.part("blocks.1.mlp.hook_post")], "can be traced"),
        (lambda: [toys.part("blocks.1.hook_resid_pre", width=32)], "expected a dictionary of width 64"),
        (lambda: [toys.part("blocks.1.hook_resid_pre", model={"fingerprint": "0" * 16, "name": "other"})], "other"),
    ],
)  # fmt: skip
def test_dictionaries_that_do_not_belong_are_refused(given, wanted):
    with pytest.raises(UserError, match=wanted):
        trace(toys.boot("llama"), toys.prompt(6), given())


def test_layout_numbers_are_columns():
    model, tokens = toys.boot("llama"), toys.prompt(6)
    machine = build_machine(model, tokens, parts(toys.clt()))
    rows = seeds(model, machine, resolve(model, machine, [5]), True)
    totals = Totals(machine, [seed for seed, _ in rows])
    layout = lay_out(machine, totals, choose(totals, machine.sources, 20), ["x"] * 6)
    for meetings in layout.columns.cuts.values():
        for token, vectors, columns in meetings:
            assert sum(count for _, count in columns) == vectors.shape[1]
            numbered = [layout.nodes[column + i] for column, count in columns for i in range(count)]
            assert {node.position for node in numbered if node.kind != "bias"} <= {token}


@pytest.mark.parametrize("architecture", toys.ARCHITECTURES)
@pytest.mark.parametrize("rows, tokens", [(1, 1), (3, 4), (5, 6)])
def test_the_folded_attention_step_is_the_plain_one(architecture, rows, tokens):
    model = toys.boot(architecture)
    block = build_machine(model, toys.prompt(6), []).frozen.blocks[1]
    g = torch.randn(rows, tokens, toys.WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = g + block.attention_adjoint(g)
    block.add_attention_adjoint_(g)
    torch.testing.assert_close(g, expected, rtol=1e-11, atol=1e-11)
    alone = torch.zeros_like(g)
    positions = torch.arange(rows) % tokens
    alone[torch.arange(rows), positions] = g[torch.arange(rows), positions]
    expected = alone + block.attention_adjoint(alone)
    block.add_attention_adjoint_at_(alone, positions)
    torch.testing.assert_close(alone, expected, rtol=1e-11, atol=1e-11)
