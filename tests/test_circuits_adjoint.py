"""I3, I4: what the adjoint sweep writes into a row is what the model does, source by source and leaf by leaf.

A sum that closes cannot see attention patterns left free under q/k norms, so single entries are compared with
two independent computations: autograd through the real model with everything held by hooks (patterns as P v at hook_z, norm
scales, MLP outputs), and finite changes of single activations in that same held model.
"""

import warnings

import pytest
import torch
from toys import boot, prompt, transcoder
from unweave.circuits import trace
from unweave.circuits.parts import parts
from unweave.circuits.tracing.frozen import capture
from unweave.circuits.tracing.machine import build_machine

NAMES = ("gpt2", "neox", "llama", "qwen3", "gemma2", "gemma3", "phi", "opt")


class HeldModel:
    """The real model on one prompt, its patterns, norm scales and MLP outputs held; reads what targets read.

    `mlp_outs` and `embeds` may be replaced by other tensors (with or without gradient).
    """

    def __init__(self, model, machine, dictionaries=None):
        self.model, self.frozen, self.dictionaries = model, machine.frozen, dictionaries or {}
        self.sources = {source.read.layer: source for source in machine.sources}
        self.cuts = {station.layer: cut for station, cut in machine.cuts.items()}
        self.mlp_outs = [block.seen["mlp_out"] for block in self.frozen.blocks]
        self.embed, self.pos_embed = self.frozen.embed, self.frozen.pos_embed

    def run(self):
        """(mlp.hook_in of every layer, logits of the last position before the cap)."""
        values, mlp_in, logits = {}, {}, []

        def pattern(z, layer):
            spread = values[layer].repeat_interleave(
                len(self.frozen.blocks[layer].pattern) // values[layer].shape[2], dim=2
            )
            return torch.einsum("hqk,bkhe->bqhe", self.frozen.blocks[layer].pattern, spread).reshape(z.shape)

        def output(out, layer):
            held, dictionary = self.mlp_outs[layer], self.dictionaries.get(layer)
            if dictionary is None or dictionary.W_skip is None:
                return held[None]
            moved = mlp_in[layer] - self.frozen.blocks[layer].seen["mlp_in"]
            return (held + self.sources[layer].live[:, None] * (moved @ dictionary.W_skip.T))[None]

        def bind(function, layer):
            return lambda tensor, hook: function(tensor, layer)

        def store(place, tensor, layer):
            place[layer] = tensor if place is values else tensor[0]

        hooks = [("hook_embed", lambda tensor, hook: self.embed[None])]
        hooks.append(("ln_final.hook_scale", lambda scale, hook: self.frozen.final.scale.reshape(scale.shape).clone()))
        if self.pos_embed is not None:
            hooks.append(("hook_pos_embed", lambda tensor, hook: self.pos_embed[None]))
        for layer, block in enumerate(self.frozen.blocks):
            norms = {
                "ln1": block.attn_norm,
                "ln1_post": block.attn_post,
                "ln2": block.mlp_norm,
                "ln2_post": block.mlp_post,
            }
            for name in self.model.blocks[layer].submodules:
                if name in norms:
                    held = norms[name].scale
                    hooks.append(
                        (
                            f"blocks.{layer}.{name}.hook_scale",
                            lambda scale, hook, held=held: held.reshape(scale.shape).clone(),
                        )
                    )
            hooks.append((f"blocks.{layer}.attn.hook_v", bind(lambda v, at: store(values, v, at), layer)))
            hooks.append((f"blocks.{layer}.attn.hook_z", bind(pattern, layer)))
            hooks.append((f"blocks.{layer}.mlp.hook_in", bind(lambda x, at: store(mlp_in, x, at), layer)))
            hooks.append((f"blocks.{layer}.mlp.hook_out", bind(output, layer)))
        hooks.append(("hook_unembed", lambda tensor, hook: logits.append(tensor[0, -1])))
        with warnings.catch_warnings(action="ignore"):
            self.model.run_with_hooks(self.frozen.tokens[None], fwd_hooks=hooks)
        return mlp_in, logits[0]

    def value(self, node, run):
        """What a node's row sums to, as a function of a run: centred logit, pre-activation, or the half rule's functional."""
        mlp_in, logits = run
        if node.kind == "logit":
            return logits[node.index] - logits.mean()
        if node.kind == "latent":
            dictionary = self.dictionaries[node.layer]
            return dictionary.W_enc[node.index] @ mlp_in[node.layer][node.position] + dictionary.b_enc[node.index]
        rows = self.sources[node.layer].targets(torch.tensor([node.position]), torch.tensor([node.index]))
        return rows.cotangent[0] @ mlp_in[node.layer][node.position] + rows.constant[0]


def setup(name):
    """A mixed trace: neurons in layers 0 and 2, a skip transcoder in layer 1."""
    model, tokens = boot(name), prompt()
    dictionaries = {1: transcoder(1, skip=True)}
    graph = trace(model, tokens, list(dictionaries.values()), max_features=40)
    machine = build_machine(model, tokens, parts(list(dictionaries.values())))
    return graph, HeldModel(model, machine, dictionaries)


def rows_to_check(graph):
    """One target of each kind and of every layer above 0."""
    seen = {}
    for i, node in enumerate(graph.nodes):
        if node.kind == "logit" or (node.is_feature and node.layer > 0):
            seen.setdefault((node.kind, node.layer), i)
    return list(seen.values())


def vector(held, node):
    """The source vector at mlp.hook_out of a feature, first, error node."""
    cut = held.cuts[node.layer]
    if not node.is_feature:
        return cut.first if node.kind == "first" else cut.error[node.position]
    source = held.sources[node.layer]
    slot = torch.tensor([node.index])
    if node.kind == "latent":
        slot = (source.indices[node.position] == node.index).nonzero()[0]
    return source.vectors(source.writes[0], torch.tensor([node.position]), slot)[0]


def row(graph, target):
    mine = graph.edges.target == target
    return dict(zip(graph.edges.source[mine].tolist(), graph.edges.weight[mine].tolist(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_I3_rows_equal_autograd_leaf_by_leaf(name):
    graph, held = setup(name)
    leaves = [held.embed.clone().requires_grad_(), *(out.clone().requires_grad_() for out in held.mlp_outs)]
    held.embed, held.mlp_outs = leaves[0], leaves[1:]
    if held.pos_embed is not None:
        leaves.append(held.pos_embed.clone().requires_grad_())
        held.pos_embed = leaves[-1]
    run = held.run()
    checked = 0
    for target in rows_to_check(graph):
        grads = torch.autograd.grad(held.value(graph.nodes[target], run), leaves, retain_graph=True, allow_unused=True)
        weights = row(graph, target)
        for i, node in enumerate(graph.nodes):
            if node.kind == "token":
                expected = float((grads[0] * held.frozen.embed)[node.position].sum())
            elif node.kind == "position":
                expected = float((grads[-1] * held.frozen.pos_embed)[node.position].sum())
            elif node.kind in ("neuron", "latent", "first", "error"):
                grad = grads[1 + node.layer]
                expected = 0.0 if grad is None else float(grad[node.position] @ vector(held, node))
            else:
                continue
            assert weights.get(i, 0.0) == pytest.approx(expected, abs=1e-11), (graph.nodes[target].label, node)
            checked += abs(expected) > 1e-6
    assert checked > 60


@pytest.mark.parametrize("name", NAMES)
def test_I4_scaling_an_activation_moves_later_values_by_its_edges(name):
    """With everything held in the real model, a -> c a changes every later target by (c - 1) times the edge, for any c."""
    graph, held = setup(name)
    targets = rows_to_check(graph)
    before = held.run()
    features = [(i, node) for i, node in enumerate(graph.nodes) if node.is_feature and node.layer < 2]
    for i, node in features[:: max(1, len(features) // 3)]:
        for c in (0.0, -3.0):
            changed = held.mlp_outs[node.layer].clone()
            changed[node.position] += (c - 1) * vector(held, node)
            true, held.mlp_outs[node.layer] = held.mlp_outs[node.layer], changed
            after = held.run()
            held.mlp_outs[node.layer] = true
            for target in targets:
                moved = held.value(graph.nodes[target], after) - held.value(graph.nodes[target], before)
                assert float(moved) == pytest.approx((c - 1) * row(graph, target).get(i, 0.0), abs=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_I3_adjoint_of_attention_is_the_transpose_of_its_forward_map(name):
    generator = torch.Generator().manual_seed(0)
    for block in capture(boot(name), prompt()).blocks:
        x, g = torch.randn(2, 6, 64, dtype=torch.float64, generator=generator)
        forward, backward = (block.attention(x) * g).sum(), (x * block.attention_adjoint(g[None])[0]).sum()
        assert float(forward) == pytest.approx(float(backward), abs=1e-11)


def test_edges_respect_layers_and_positions():
    graph, _ = setup("llama")
    for target, source in zip(graph.edges.target.tolist(), graph.edges.source.tolist(), strict=True):
        t, s = graph.nodes[target], graph.nodes[source]
        assert source < target
        assert not t.kind == "token"
        if s.is_feature:
            assert s.layer < t.layer
            assert s.position <= t.position


def test_total_attribution_is_the_sum_over_paths_when_every_source_is_a_node():
    """attribution = w (1 - A~)^-1 with A~[t, s] = weight / value of the target: the series over all signed paths."""
    model = boot("llama")
    graph = trace(model, prompt(4), max_features=10_000)
    weights = torch.zeros(len(graph), len(graph), dtype=torch.float64)
    weights[graph.edges.target, graph.edges.source] = graph.edges.weight
    share = weights / graph.row_values.nan_to_num(1.0)[:, None]
    share[graph.row_values == 0] = 0
    start = graph.column("weight") * graph.row_values.nan_to_num(0.0)
    total = torch.linalg.solve(torch.eye(len(graph), dtype=torch.float64) - share.T, start)
    features = graph.of_kind("neuron", "token", "first")
    torch.testing.assert_close(total[features], graph.column("attribution")[features], rtol=1e-8, atol=1e-10)
