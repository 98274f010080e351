"""I1, I2: every row of a graph sums to its target's value in the unmodified forward pass, on ten architectures."""

from functools import cache
from itertools import pairwise

import pytest
import torch
from toys import ARCHITECTURES, boot, clt, part, prompt, transcoder
from unweave.circuits import trace
from unweave.circuits.parts import parts
from unweave.circuits.tracing import machine as machine_module
from unweave.circuits.tracing import record
from unweave.circuits.tracing.check import closure_errors, leaf_errors
from unweave.circuits.tracing.frozen import capture
from unweave.circuits.tracing.machine import build_machine
from unweave.circuits.tracing.sources import Latents, Neurons
from unweave.circuits.tracing.stations import Place, Station
from unweave.saes.errors import UserError

MLP_1 = Station(1, Place.MLP)
FEATURES = 40


@cache
def float32(name):
    return boot(name, dtype=torch.float32)


def leaf_total(graph):
    return sum(node.attribution for node in graph.nodes if node.kind in ("token", "position", "bias", "first", "error"))


def weighted_value(graph):
    return sum(node.weight * node.value for node in graph.nodes if node.kind == "logit")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_I2_row_sums_equal_values_with_neurons(name):
    graph = trace(boot(name), prompt(), max_features=FEATURES)
    assert len(graph.of_kind("neuron")) == FEATURES
    assert graph.residual <= 1e-12


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_I2_row_sums_equal_values_with_transcoders(name):
    """Layer 0 a skip transcoder, layer 1 a plain one whose exclusion rule drops two more positions; layer 2 neurons."""
    dictionaries = [transcoder(0, skip=True), transcoder(1, seed=1, keep={"drop_positions": 3})]
    graph = trace(boot(name), prompt(), dictionaries, max_features=FEATURES)
    assert {node.layer for node in graph.nodes if node.kind == "latent"} == {0, 1}
    assert graph.residual <= 1e-12


@pytest.mark.parametrize("keep", ["positions", "norms"])
def test_excluded_positions_carry_the_whole_output_as_error(keep):
    model = boot("gpt2")
    seen = capture(model, prompt()).blocks[1].seen
    norms = seen["mlp_in"].norm(dim=1)
    limit = float(norms[1:].median())
    rule = {"positions": {"drop_positions": 3}, "norms": {"max_norm": {"blocks.1.mlp.hook_in": limit}}}[keep]
    kept = torch.arange(6) >= 3 if keep == "positions" else (norms <= limit) & (torch.arange(6) > 0)
    machine = build_machine(model, prompt(), parts([transcoder(1, skip=True, keep=rule)]))
    cut = machine.cuts[MLP_1]
    (source,) = (machine.sources[index] for index in cut.writers)
    out = ~kept & (torch.arange(6) > 0)
    assert out.any()
    torch.testing.assert_close(cut.error[out], seen["mlp_out"][out], rtol=0, atol=0)
    torch.testing.assert_close(cut.first, seen["mlp_out"][0], rtol=0, atol=0)
    assert (source.values[~kept] == 0).all()
    assert (source.values[kept] > 0).any(1).all()


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("case", ["neurons", "transcoder", "everything"])
def test_I2_in_float32(name, case):
    given = {
        "neurons": list,
        "transcoder": lambda: [transcoder(1, skip=True, dtype=torch.float32)],
        "everything": lambda: [part("blocks.0.hook_attn_out"), *clt(), part("blocks.1.hook_resid_post", seed=4)],
    }[case]()
    graph = trace(float32(name), prompt(), given, max_features=FEATURES)
    assert graph.edges.weight.dtype == graph.row_values.dtype == torch.float32
    assert graph.residual <= 1e-5


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_total_attribution_is_conserved(name):
    """What the weighted targets are worth arrives, through all features, at the leaves."""
    graph = trace(boot(name), prompt(), [transcoder(1, skip=True)], max_features=FEATURES)
    assert leaf_total(graph) == pytest.approx(weighted_value(graph), abs=1e-10)


CUTS = {
    "neurons": list,
    "transcoders": lambda: [transcoder(0, skip=True), transcoder(1), transcoder(2)],
    "cross-layer": clt,
    "SAEs": lambda: [part("blocks.0.attn.hook_z"), part("blocks.1.mlp.hook_out"), part("blocks.1.hook_resid_post")],
}


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
@pytest.mark.parametrize("case", CUTS)
def test_I1_sources_and_leaves_reproduce_what_stands_at_every_cut(case, name):
    machine = build_machine(boot(name), prompt(), parts(CUTS[case]()))
    for station, cut in machine.cuts.items():
        block = machine.frozen.blocks[min(station.layer, 2)]
        is_mlp = station.place in (Place.MLP, Place.MLP_OUT)
        seen = block.seen["mlp_out"] if is_mlp else machine.frozen.at[cut.site]
        total = cut.constant.clone()
        total[0] += cut.first
        for index in cut.writers:
            source = machine.sources[index]
            total = total + source.write(station, source.values)
            if isinstance(source, Latents) and source.W_skip is not None:
                linear = block.mlp_norm.linear(block.seen["resid_pre"] + block.seen["attn_out"])
                total = total + source.live[:, None] * (linear @ source.W_skip.T)
        if cut.error is not None:
            total = total + cut.error
        torch.testing.assert_close(total, seen, rtol=0, atol=1e-12)
    written = {station for source in machine.sources for station in source.writes}
    assert written <= machine.cuts.keys()


def test_I1_targets_have_the_values_of_the_forward_pass():
    """Logits are centred and before any soft-cap (Gemma 2 caps at 3 here), neurons what the hooks showed."""
    model, tokens = boot("gemma2"), prompt()
    graph = trace(model, tokens, max_features=FEATURES)
    _, cache = model.run_with_cache(tokens[None])
    logits = cache["hook_unembed"][0, -1]
    centred = logits - logits.mean()
    for i, node in enumerate(graph.nodes):
        if node.kind == "logit":
            assert float(graph.row_values[i]) == pytest.approx(float(centred[node.index]), rel=1e-5)
        if node.kind == "neuron":
            post = cache[f"blocks.{node.layer}.mlp.hook_post"][0, node.position, node.index]
            assert float(graph.row_values[i]) == node.value == pytest.approx(float(post), rel=1e-5)


def test_a_corrupted_source_makes_the_residual_jump(monkeypatch):
    """No leaf is a balance: one feature vector 1 % too long, and the rows no longer sum."""
    true = Neurons.vectors

    def wrong(self, station, positions, slots):
        vectors = true(self, station, positions, slots)
        vectors[:1] *= 1.01
        return vectors

    model = boot("llama")
    assert trace(model, prompt(), max_features=FEATURES).residual <= 1e-12
    monkeypatch.setattr(Neurons, "vectors", wrong)
    assert trace(model, prompt(), max_features=FEATURES).residual > 1e-5


@pytest.mark.parametrize("leaf", ["first", "error", "constant"])
def test_a_corrupted_leaf_makes_the_residual_jump(monkeypatch, leaf):
    true = machine_module._cut

    def wrong(frozen, sources, station, writers, site):
        cut = true(frozen, sources, station, writers, site)
        return cut._replace(**{leaf: getattr(cut, leaf) * 1.01}) if station == Station(0, Place.MLP) else cut

    monkeypatch.setattr(machine_module, "_cut", wrong)
    assert trace(boot("gpt2"), prompt(), [transcoder(0)], max_features=FEATURES).residual > 1e-5


@pytest.mark.parametrize("name", ["neox", "gemma2"])
def test_small_batches_record_the_same_rows(monkeypatch, name):
    """The result does not depend on how the recording pass is cut: batches of one row against one batch."""
    model, dictionaries = boot(name), [transcoder(1, skip=True), part("blocks.0.hook_attn_out")]
    whole = trace(model, prompt(), dictionaries, max_features=FEATURES)
    true, counts = record._batches, []

    def single(*arguments):
        for rows in true(*arguments):
            counts.append(len(rows))
            yield from rows.split(1)

    monkeypatch.setattr(record, "_batches", single)
    cut = trace(model, prompt(), dictionaries, max_features=FEATURES)
    assert counts == [int((~whole.row_values.isnan()).sum())]
    assert cut.nodes == whole.nodes
    assert torch.equal(cut.edges.target, whole.edges.target)
    assert torch.equal(cut.edges.source, whole.edges.source)
    torch.testing.assert_close(cut.edges.weight, whole.edges.weight, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("memory_mib", [1, 3, 64])
def test_batches_fit_the_memory_that_was_given(memory_mib):
    """Every row once; neighbouring positions together; cotangents, a block's temporaries and dense rows below the bound."""
    machine = build_machine(boot("llama"), prompt(32), [])
    tokens = torch.randint(1, 32, (3000,), generator=torch.Generator().manual_seed(0))
    columns = record.Columns(0, None, 32, {}, 2000)
    wanted = record._Wanted(torch.zeros(3000, dtype=torch.int64), torch.arange(3000), tokens)
    batches = list(record._batches(machine, columns, wanted, memory_mib))
    assert torch.equal(torch.cat(batches).sort().values, torch.arange(3000))
    sizes = []
    for rows in batches:
        longest = int(tokens[rows].max()) + 1
        sizes.append(len(rows) * (longest * 4 * 64 * 8 + 2000 * 8))
        assert (rows.diff() > 0).all()
    assert max(sizes) <= memory_mib * 2**20
    assert len(batches) > 1 or sum(sizes) > memory_mib * 2**20 / 3
    edges = [(int(tokens[rows].min()), int(tokens[rows].max())) for rows in batches]
    assert all(before[1] <= after[0] for before, after in pairwise(edges))


def test_less_memory_means_smaller_batches(monkeypatch):
    sizes, true = [], record.Record.__init__

    def noting(self, machine, columns, entering, rows, tokens):
        sizes.append(rows)
        true(self, machine, columns, entering, rows, tokens)

    monkeypatch.setattr(record.Record, "__init__", noting)
    graph = trace(boot("llama"), prompt(20), max_features=2000, memory_mib=2)
    assert sum(sizes) == int((~graph.row_values.isnan()).sum())
    assert len(sizes) > 20
    assert max(sizes) * len(graph) * 8 <= 2 * 2**20
    assert graph.residual <= 1e-12


def test_every_active_source_can_be_a_node():
    graph = trace(boot("opt"), prompt(), max_features=10_000)
    frozen = capture(boot("opt"), prompt())
    active = sum(int((block.seen["post"][1:] != 0).sum()) for block in frozen.blocks)
    assert len(graph.of_kind("neuron")) == active < 10_000
    assert graph.residual <= 1e-12


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_self_check_passes(name):
    model = boot(name)
    frozen = capture(model, prompt())
    assert max(closure_errors(frozen).values()) < 1e-12
    assert max(leaf_errors(model, frozen).values()) < 1e-12


def test_self_check_refuses_hidden_multipliers():
    """Granite scales each branch by a constant that no hook shows."""
    with pytest.raises(UserError, match=r"affine once .* is off by"):
        trace(boot("granite"), prompt())


@pytest.mark.parametrize("part", ["attention", "norm", "pattern"])
def test_self_check_sees_a_wrong_map(part, monkeypatch):
    """Negative controls: a value bias forgotten, norm offset forgotten, patterns of another head."""
    model = boot("gemma2" if part == "norm" else "gpt2")
    frozen = capture(model, prompt())
    block = frozen.blocks[1]
    wrong = {
        "attention": lambda: block._replace(b_V=None),
        "norm": lambda: block._replace(attn_norm=block.attn_norm._replace(gain=block.attn_norm.gain - 1)),
        "pattern": lambda: block._replace(pattern=block.pattern.flip(0)),
    }[part]()
    frozen.blocks[1] = wrong
    assert max(closure_errors(frozen).values()) > 1e-3


def test_leaf_check_sees_what_closure_cannot():
    """Another head's pattern in the adjoint alone: the effect of a token embedding is off."""
    model = boot("qwen3")
    frozen = capture(model, prompt())
    held = capture(model, prompt())
    block = frozen.blocks[1]
    errors = leaf_errors(model, held)
    assert max(errors.values()) < 1e-12
    frozen.blocks[1] = block._replace(W_V=block.W_V.flip(0))
    assert leaf_errors(model, frozen)["the effect of a token embedding"] > 1e-4
