"""I1, I2: every row of a graph sums to its target's value in the unmodified forward pass, on ten architectures."""

import pytest
import torch
from toys import ARCHITECTURES, boot, prompt, transcoder
from unweave.circuits import trace
from unweave.circuits.check import closure_errors, leaf_errors
from unweave.circuits.frozen import capture
from unweave.circuits.sources import Latents, Neurons
from unweave.saes.errors import UserError

FEATURES = 40


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
    block = capture(boot("gpt2"), prompt()).blocks[1]
    norms = block.seen["mlp_in"].norm(dim=1)
    limit = float(norms[1:].median())
    rule = {"positions": {"drop_positions": 3}, "norms": {"max_norm": {"blocks.1.mlp.hook_in": limit}}}[keep]
    kept = torch.arange(6) >= 3 if keep == "positions" else (norms <= limit) & (torch.arange(6) > 0)
    source = Latents(block, transcoder(1, skip=True, keep=rule))
    out = ~kept & (torch.arange(6) > 0)
    assert out.any()
    torch.testing.assert_close(source.leaves.error[out], block.seen["mlp_out"][out], rtol=0, atol=0)
    assert (source.values[~kept] == 0).all()
    assert (source.values[kept] > 0).any(1).all()


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox", "gemma2"])
def test_I2_in_float32(name):
    dictionaries = [transcoder(1, skip=True, dtype=torch.float32)]
    assert trace(boot(name, dtype=torch.float32), prompt(), dictionaries, max_features=FEATURES).residual <= 1e-5


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_total_attribution_is_conserved(name):
    """What the weighted targets are worth arrives, through all features, at the leaves."""
    graph = trace(boot(name), prompt(), [transcoder(1, skip=True)], max_features=FEATURES)
    assert leaf_total(graph) == pytest.approx(weighted_value(graph), abs=1e-10)


@pytest.mark.parametrize("dictionaries", [[], [transcoder(0, skip=True), transcoder(1), transcoder(2)]])
def test_I1_sources_and_leaves_reproduce_the_mlp_output(dictionaries):
    frozen = capture(boot("gpt2"), prompt())
    for layer, block in enumerate(frozen.blocks):
        source = Latents(block, dictionaries[layer]) if dictionaries else Neurons(block)
        total = source.write(source.values) + source.leaves.first + source.leaves.constant
        if source.leaves.error is not None:
            total = total + source.leaves.error
        if isinstance(source, Latents) and source.W_skip is not None:
            linear = block.mlp_norm.linear(block.seen["resid_pre"] + block.seen["attn_out"])
            total = total + source.live[:, None] * (linear @ source.W_skip.T)
        torch.testing.assert_close(total, block.seen["mlp_out"], rtol=0, atol=1e-12)


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
    true = Neurons.sources

    def wrong(self, positions, slots):
        vectors = true(self, positions, slots)
        vectors[0] *= 1.01
        return vectors

    model = boot("llama")
    assert trace(model, prompt(), max_features=FEATURES).residual <= 1e-12
    monkeypatch.setattr(Neurons, "sources", wrong)
    assert trace(model, prompt(), max_features=FEATURES).residual > 1e-5


@pytest.mark.parametrize("leaf", ["first", "error", "constant"])
def test_a_corrupted_leaf_makes_the_residual_jump(monkeypatch, leaf):
    true = Latents.__init__

    def wrong(self, block, dictionary):
        true(self, block, dictionary)
        self.leaves = self.leaves._replace(**{leaf: getattr(self.leaves, leaf) * 1.01})

    monkeypatch.setattr(Latents, "__init__", wrong)
    assert trace(boot("gpt2"), prompt(), [transcoder(0)], max_features=FEATURES).residual > 1e-5


def test_small_batches_record_the_same_rows(monkeypatch):
    """The result does not depend on how the recording pass is cut: batches of one row against one batch."""
    model, dictionaries = boot("neox"), [transcoder(1, skip=True)]
    whole = trace(model, prompt(), dictionaries, max_features=FEATURES)
    parts = trace(model, prompt(), dictionaries, max_features=FEATURES, memory_mib=0)
    assert parts.nodes == whole.nodes
    assert torch.equal(parts.edges.target, whole.edges.target)
    assert torch.equal(parts.edges.source, whole.edges.source)
    torch.testing.assert_close(parts.edges.weight, whole.edges.weight, rtol=1e-10, atol=1e-14)


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
