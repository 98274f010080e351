"""Patching baselines: path patching, attribution patching and ACDC, by identities and by a circuit that was planted.

Toys of ten architectures in float64; the planted circuit is a two-layer attention-only model without norms.
"""

import math

import pytest
import torch
from toys import ARCHITECTURES, boot, prompt, tokenizer
from unweave.circuits.experiment.statistics import auroc
from unweave.circuits.graph import Graph
from unweave.circuits.patching.acdc import acdc
from unweave.circuits.patching.components import CHANNELS, fire, wire
from unweave.circuits.patching.eap import eap
from unweave.circuits.patching.patched import run
from unweave.circuits.patching.recovery import circuit_value, edge_scores, strongest
from unweave.saes import UserError

CLEAN = prompt(7)
CORRUPT = CLEAN.clone()
CORRUPT[2], CORRUPT[4] = 50, 7
PAIR = [(5, 6)]


@pytest.fixture(autouse=True)
def softmax_in_the_models_dtype(monkeypatch):
    """transformers rounds attention to float32 even in float64 models, too coarse for identities and differences."""
    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda x, dim=-1, dtype=None, **_: softmax(x, dim=dim))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request):
    return boot(request.param)


@pytest.fixture(scope="module")
def wiring(model):
    return wire(model, CLEAN)


# Parallel blocks, post-norms with grouped heads, q/k norms, and attention left to transformers.
some = pytest.mark.parametrize("model", ["neox", "gemma2", "qwen3", "opt"], indirect=True)


def outputs(wiring, tokens):
    return run(wiring, tokens).outputs[:, 0]


def name(component):
    kind, layer, index = component
    fixed = {"embed": "embedding", "logit": "logits", "mlp": f"L{layer} MLP", "head": f"L{layer}H{index}"}
    return fixed.get(kind, f"L{layer}H{index}.{kind}")


def candidates(wiring):
    """(sender, receiver) by name, for every edge that could be; in the order of `wiring.allowed.nonzero()`."""
    return [(name(wiring.senders[s]), name(wiring.receivers[r])) for r, s in wiring.allowed.nonzero().tolist()]


def one_edge_each(wiring):
    """A row of removed edges for each candidate: that edge alone."""
    places = wiring.allowed.nonzero()
    removed = torch.zeros(len(places), *wiring.allowed.shape, 1, dtype=torch.bool)
    removed[torch.arange(len(places)), places[:, 0], places[:, 1]] = True
    return removed


# Path patching


def test_no_edge_removed_is_the_clean_run_and_all_removed_the_corrupted_one(wiring):
    clean, other = run(wiring, CLEAN), run(wiring, CORRUPT)
    everything = wiring.allowed[None, :, :, None]
    both = run(wiring, CLEAN, torch.cat([torch.zeros_like(everything), everything]), other.outputs[:, 0])
    assert (clean.logits - other.logits).abs().max() > 0.1
    torch.testing.assert_close(both.logits[:1], clean.logits, rtol=0, atol=1e-10)
    torch.testing.assert_close(both.logits[1:], other.logits, rtol=0, atol=1e-10)


def test_every_edge_of_a_writer_removed_is_replacing_its_output(wiring):
    writers = ["hook_mlp_out"] + (["attn.hook_z"] if wiring.blocks[1].attn_post is None else [])
    other, seen = outputs(wiring, CORRUPT), {}
    for site in writers:
        hook = f"blocks.1.{site}"
        fire(wiring, CORRUPT[None], [(hook, lambda value, hook: seen.__setitem__(hook.name, value.detach()))])
        saved = next(reversed(seen.values()))
        edit = saved if site == "hook_mlp_out" else None

        def replace(value, hook, edit=edit, saved=saved):
            if edit is not None:
                return edit
            value = value.clone()
            value[:, :, 2] = saved[:, :, 2]
            return value

        with torch.no_grad():
            truth = fire(wiring, CLEAN[None], [(hook, replace)])[0, -1]
        column = wiring.columns(1, "mlp").start if site == "hook_mlp_out" else wiring.columns(1, "head").start + 2
        removed = torch.zeros(1, *wiring.allowed.shape, 1, dtype=torch.bool)
        removed[0, :, column] = wiring.allowed[:, column, None]
        assert (truth - run(wiring, CLEAN).logits[0]).abs().max() > 1e-3
        torch.testing.assert_close(run(wiring, CLEAN, removed, other).logits[0], truth, rtol=0, atol=1e-10)


@some
def test_positions_of_an_edge_add_up_to_the_edge(wiring):
    other = outputs(wiring, CORRUPT)
    removed = torch.rand(1, *wiring.allowed.shape, 1, generator=torch.Generator().manual_seed(0)) < 0.3
    removed &= wiring.allowed[None, :, :, None]
    whole = run(wiring, CLEAN, removed, other).logits
    each = run(wiring, CLEAN, removed.expand(-1, -1, -1, len(CLEAN)), other).logits
    torch.testing.assert_close(each, whole, rtol=0, atol=1e-12)


def test_a_model_whose_branches_are_scaled_out_of_sight_is_refused():
    with pytest.raises(UserError, match="granite"):
        wire(boot("granite"), CLEAN)


# Edge attribution patching


def test_scores_are_the_derivative_of_patching_the_edge(model, wiring):
    clean, other = outputs(wiring, CLEAN), outputs(wiring, CORRUPT)
    step, removed = 1e-4, one_edge_each(wiring)
    ends = [run(wiring, CLEAN, removed, clean + sign * step * (other - clean)).unembed for sign in (-1, 1)]
    measured = ((ends[0] - ends[1]) / (2 * step))[:, 5] - ((ends[0] - ends[1]) / (2 * step))[:, 6]
    scores = edge_scores(eap(model, CLEAN, CORRUPT, PAIR))
    ours = torch.tensor([scores.get(edge, 0.0) for edge in candidates(wiring)], dtype=torch.float64)
    assert measured.abs().max() > 1e-2
    torch.testing.assert_close(ours, measured, rtol=1e-4, atol=1e-5 * float(measured.abs().max()))


def test_edges_of_a_writer_sum_to_its_change_times_its_full_gradient(model, wiring):
    clean, other = outputs(wiring, CLEAN), outputs(wiring, CORRUPT)
    sites = {"embedding": "blocks.0.hook_resid_pre", "L1 MLP": "blocks.1.hook_mlp_out"}
    rows = {"embedding": 0, "L1 MLP": wiring.columns(1, "mlp").start}
    graph = eap(model, CLEAN, CORRUPT, PAIR)
    totals = {node.label: node.attribution for node in graph.nodes}
    for writer, site in sites.items():
        leaf = clean[rows[writer]][None].clone().requires_grad_()
        kept = []
        hooks = [(site, lambda value, hook, leaf=leaf: leaf)]
        hooks.append(("hook_unembed", lambda value, hook, kept=kept: kept.append(value[0, -1])))
        fire(wiring, CLEAN[None], hooks)
        (gradient,) = torch.autograd.grad(kept[0][5] - kept[0][6], leaf)
        effect = float(((clean - other)[rows[writer]] * gradient[0]).sum())
        assert totals[writer] == pytest.approx(effect, rel=1e-9)


@some
def test_what_enters_a_head_is_its_change_times_its_gradient_split_over_the_group(model, wiring):
    graph = eap(model, CLEAN, CORRUPT, PAIR, positions=True)
    scores = edge_scores(graph)
    block = wiring.blocks[1]
    changes = run(wiring, CLEAN).channels[1], run(wiring, CORRUPT).channels[1]
    for channel in CHANNELS:
        live, kept = [], []
        leaf = torch.zeros_like(run(wiring, CLEAN).outputs[0]).requires_grad_()

        def catch(value, hook, live=live):
            live.append(value.clone())
            return live[0]

        hooks = [("blocks.0.hook_resid_pre", lambda value, hook, leaf=leaf: value + leaf)]
        hooks += [(f"blocks.1.attn.hook_{channel}", catch)]
        hooks += [("hook_unembed", lambda value, hook, kept=kept: kept.append(value[0, -1]))]
        fire(wiring, CLEAN[None], hooks)
        (gradient,) = torch.autograd.grad(kept[0][5] - kept[0][6], live[0])
        change = changes[0][channel] - changes[1][channel]
        effect = (gradient.reshape(change.shape) * change).sum((0, 1, 3))
        group = block.heads // len(effect)
        ours = [
            sum(scores.get((f"L1H{i}.{channel}", f"L1H{i * group + member}"), 0.0) for member in range(group))
            for i in range(len(effect))
        ]
        torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), effect, rtol=1e-9, atol=1e-12)


@some
def test_scores_by_position_sum_to_the_scores_without(model):
    summed = edge_scores(eap(model, CLEAN, CORRUPT, PAIR))
    by_position = edge_scores(eap(model, CLEAN, CORRUPT, PAIR, positions=True))
    assert set(by_position) >= set(summed)
    scale = max(abs(weight) for weight in summed.values())
    for edge, weight in by_position.items():
        assert weight == pytest.approx(summed.get(edge, 0.0), abs=1e-10 * scale)


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2"])
def test_integrated_gradients_of_the_embedding_complete_the_difference(architecture):
    model, errors = boot(architecture), []
    for steps in (4, 16):
        graph = eap(model, CLEAN, CORRUPT, PAIR, steps=steps)
        ends = graph.metadata["metric"]
        total = sum(node.attribution for node in graph.nodes if node.kind == "token")
        errors.append(abs(total - (ends["clean"] - ends["corrupt"])))
    assert errors[-1] < 0.01 * abs(ends["clean"] - ends["corrupt"])
    assert errors[0] / errors[1] > 10  # 16 for an error of 1 / steps^2, 4 for 1 / steps


def test_scores_are_exact_where_the_model_is_linear():
    model = native()
    for key in ("L0.q.weight", "L0.q.bias", "L1.q.weight", "L1.q.bias"):
        parameters(model)[key].zero_()
    wiring = wire(model, CLEAN)
    scores = edge_scores(eap(model, CLEAN, CORRUPT, PAIR))
    unembed = run(wiring, CLEAN, one_edge_each(wiring), outputs(wiring, CORRUPT)).unembed
    before = run(wiring, CLEAN).unembed[0]
    change = (before[5] - before[6]) - (unembed[:, 5] - unembed[:, 6])
    ours = torch.tensor([scores.get(edge, 0.0) for edge in candidates(wiring)], dtype=torch.float64)
    assert change.abs().max() > 1e-3
    torch.testing.assert_close(ours, change, rtol=0, atol=1e-12)


def test_pairs_are_averaged_each_with_targets_of_its_own():
    model, other = boot("llama"), prompt(5, seed=3)
    swapped = other.flip(0)
    swapped[0] = 0
    both = eap(model, [CLEAN, other], [CORRUPT, swapped], [[(5, 6)], [(8, 9)]])
    parts = [edge_scores(eap(model, CLEAN, CORRUPT, [(5, 6)])), edge_scores(eap(model, other, swapped, [(8, 9)]))]
    for edge, weight in edge_scores(both).items():
        assert weight == pytest.approx(sum(part.get(edge, 0.0) for part in parts) / 2, abs=1e-12)


def test_default_target_is_the_likeliest_clean_token_against_the_likeliest_corrupted_one():
    model = boot("llama")
    best = [int(model(tokens[None])[0, -1].argmax()) for tokens in (CLEAN, CORRUPT)]
    ids = eap(model, CLEAN, CORRUPT).metadata["targets"][0]["ids"]
    assert ids == ([best] if best[0] != best[1] else [[best[0]]])
    assert eap(model, CLEAN).metadata["targets"][0]["ids"] == [[best[0]]]


# ACDC and the planted circuit


def native(size=0.2, **changes):
    """A two-layer attention-only model without norms; all weights random of this size."""
    import transformer_lens.model_bridge.sources.native  # noqa: F401
    from transformer_lens.model_bridge import TransformerBridge

    shape = dict(d_model=32, d_head=8, n_heads=4, n_layers=2, n_ctx=16, d_vocab=100, act_fn="relu", seed=0)
    config = shape | dict(normalization_type=None, attn_only=True) | changes
    model = TransformerBridge.boot_native(config, tokenizer=tokenizer(), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    model.requires_grad_(False)
    for weight in model.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64) * size)
    return model.eval()


def parameters(model):
    """Short name ("L0.v.weight", "tok_embed.weight") -> parameter."""
    named = {key.replace("._original_component", ""): weight for key, weight in model.named_parameters()}
    return {key.replace("layers.", "L").replace(".attn", ""): weight for key, weight in named.items()}


TRUTH = {
    ("embedding", "L0H1.v"),
    ("L0H1", "L1H2.v"),
    ("L1H2", "logits"),
    ("embedding", "L1H0.v"),
    ("L1H0", "logits"),
    ("embedding", "L0H2.v"),
    ("L0H2", "L1H3.k"),
    ("L1H3", "logits"),
}
YES, NO, MARK = 3, 4, 20  # the word that differs between the prompts, and one that only L1H3 looks at


@pytest.fixture(scope="module")
def planted():
    """Coordinate 0 holds YES or NO. It reaches coordinate 2, which the logits read, directly (L1H0), through L0H1 and L1H2 by
    values, and by L0H2 moving L1H3's attention by its keys; L1H3's values depend on MARK, the same in both prompts."""
    model = native()
    w = parameters(model)
    for weight in w.values():
        weight.mul_(0.003)  # noise on every other edge
    w["tok_embed.weight"][YES, 0], w["tok_embed.weight"][NO, 0] = 1.0, -1.0
    w["tok_embed.weight"][MARK, 8] = 1.0

    def move(layer, head, source, target, gain):
        w[f"L{layer}.v.weight"][head * 8, source] = gain
        w[f"L{layer}.o.weight"][target, head * 8] = gain

    move(0, 1, 0, 1, 2.0)
    move(1, 2, 1, 2, 2.0)
    move(1, 0, 0, 2, 1.5)
    move(0, 2, 0, 3, 2.0)
    move(1, 3, 8, 2, 2.0)
    w["L1.q.bias"][3 * 8] = 2.0
    w["L1.k.weight"][3 * 8, 3] = 2.0
    w["head.weight"][5, 2], w["head.weight"][6, 2] = 1.0, -1.0
    return model


PLANTED = torch.tensor([0, MARK, 30, YES, 40, 41]), torch.tensor([0, MARK, 30, NO, 40, 41])


def scores_and_truth(model, graph):
    edges = candidates(wire(model, PLANTED[0]))
    assert set(edges) >= TRUTH
    found = edge_scores(graph)
    scores = torch.tensor([abs(found.get(edge, 0.0)) for edge in edges], dtype=torch.float64)
    return scores, torch.tensor([edge in TRUTH for edge in edges])


def between_components(graph):
    return {edge for edge in edge_scores(graph) if "." not in edge[0]}


@pytest.mark.parametrize("targets, threshold", [(PAIR, 0.03), (None, 1e-5)])
def test_acdc_finds_exactly_the_planted_edges(planted, targets, threshold):
    graph = acdc(planted, *PLANTED, targets, threshold=threshold)
    assert between_components(graph) == TRUTH
    assert auroc(*scores_and_truth(planted, graph)) == 1.0


def test_an_edge_stays_from_a_threshold_equal_to_its_weight_downwards(planted):
    scores = edge_scores(acdc(planted, *PLANTED, PAIR, threshold=0.03))
    smallest = min(abs(weight) for edge, weight in scores.items() if edge in TRUTH)
    assert smallest > 0.05
    assert between_components(acdc(planted, *PLANTED, PAIR, threshold=0.99 * smallest)) == TRUTH
    assert between_components(acdc(planted, *PLANTED, PAIR, threshold=1.01 * smallest)) < TRUTH


def test_acdc_by_position_finds_the_planted_edges_where_they_act(planted):
    graph = acdc(planted, *PLANTED, PAIR, threshold=0.03, positions=True)
    assert between_components(graph) == TRUTH
    reads = {node.position for node in graph.nodes if node.label in ("L0H1.v", "L0H2.v", "L1H0.v")}
    assert reads == {3}
    assert {node.position for node in graph.nodes if node.label in ("L1H2", "L1H0", "L1H3")} == {5}


@pytest.mark.parametrize("steps", [1, 5])
def test_attribution_patching_ranks_the_planted_edges_first(planted, steps):
    graph = eap(planted, *PLANTED, PAIR, steps=steps)
    assert auroc(*scores_and_truth(planted, graph)) >= 0.99
    assert between_components(strongest(graph, len(TRUTH))) == TRUTH


@pytest.fixture(scope="module")
def grouped():
    """Two layers with MLPs, LayerNorm and two query heads to a key-value head."""
    return native(0.6, attn_only=False, normalization_type="LN", d_mlp=32, n_key_value_heads=2)


SHORT = torch.tensor([0, 30, YES, 40]), torch.tensor([0, 30, NO, 40])


def test_batched_search_is_the_sequential_one(grouped):
    one, many = (acdc(grouped, *SHORT, PAIR, threshold=0.2, rows=rows) for rows in (1, 8))
    assert len(one.edges.weight) > 5
    assert torch.equal(one.edges.source, many.edges.source) and torch.equal(one.edges.target, many.edges.target)
    torch.testing.assert_close(one.edges.weight, many.edges.weight, rtol=0, atol=1e-12)


@pytest.mark.parametrize("targets, threshold, positions", [(None, 1e-3, True), (PAIR, 0.1, False)])
def test_running_only_the_found_edges_gives_the_value_that_the_search_ended_with(
    grouped, targets, threshold, positions
):
    graph = acdc(grouped, *SHORT, targets, threshold=threshold, positions=positions)
    assert 10 < len(graph.edges.weight) < 200
    assert circuit_value(grouped, graph) == pytest.approx(graph.metadata["metric"]["circuit"], abs=1e-12)


def test_a_tiny_threshold_keeps_the_model_and_a_huge_one_keeps_nothing(planted):
    whole = acdc(planted, *PLANTED, PAIR, threshold=1e-15).metadata["metric"]
    assert whole["circuit"] == pytest.approx(whole["clean"], abs=1e-12)
    none = acdc(planted, *PLANTED, PAIR, threshold=1e3)
    assert not len(none.edges.weight)
    assert none.metadata["metric"]["circuit"] == pytest.approx(none.metadata["metric"]["corrupt"], abs=1e-12)


def test_values_of_the_strongest_edges_run_from_corrupted_to_clean(planted):
    graph = eap(planted, *PLANTED, PAIR)
    ends = graph.metadata["metric"]
    assert circuit_value(planted, strongest(graph, 0)) == pytest.approx(ends["corrupt"], abs=1e-12)
    assert circuit_value(planted, graph) == pytest.approx(ends["clean"], abs=1e-12)
    share = (circuit_value(planted, strongest(graph, 8)) - ends["corrupt"]) / (ends["clean"] - ends["corrupt"])
    assert share == pytest.approx(1, abs=0.05)


def test_both_run_on_every_architecture(model):
    graphs = eap(model, CLEAN, positions=True), acdc(model, CLEAN, CORRUPT, threshold=3.0)
    for graph in graphs:
        assert math.isnan(graph.residual) and graph.row_values.isnan().all() and "no ledger" in repr(graph)
        assert (graph.edges.source < graph.edges.target).all() and graph.edges.weight.isfinite().all()
        key = graph.edges.target.long() * len(graph) + graph.edges.source
        assert (key.diff() > 0).all()


def test_zero_ablation_of_everything_is_what_the_graph_says(grouped):
    graph = acdc(grouped, SHORT[0], None, PAIR, threshold=0.5)
    assert len(graph.edges.weight) > 5
    assert circuit_value(grouped, graph) == pytest.approx(graph.metadata["metric"]["circuit"], abs=1e-12)
    assert circuit_value(grouped, strongest(graph, 0)) == pytest.approx(graph.metadata["metric"]["corrupt"], abs=1e-12)


# Graph


def test_a_component_graph_is_saved_pruned_and_loaded_like_any_other(tmp_path, planted):
    graph = eap(planted, *PLANTED, PAIR, positions=True)
    again = Graph.load(graph.save(tmp_path / "eap.graph"))
    assert again.nodes == graph.nodes and again.metadata == graph.metadata
    assert all(torch.equal(a, b) for a, b in zip(again.edges, graph.edges, strict=True))
    pruned = graph.prune(0.9, 0.9)
    assert 0 < len(pruned) < len(graph)
    assert circuit_value(planted, again) == pytest.approx(graph.metadata["metric"]["clean"], abs=1e-9)


def test_auroc_by_hand():
    truth = torch.tensor([True, True, False, False])
    assert auroc(torch.tensor([4.0, 3.0, 2.0, 1.0]), truth) == 1
    assert auroc(torch.tensor([4.0, 1.0, 2.0, 1.0]), truth) == 0.625  # pairs won: 2 of 2, and half of one of 2
    with pytest.raises(UserError, match="true and false"):
        auroc(torch.tensor([1.0]), torch.tensor([True]))


# Errors


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((CLEAN, CORRUPT[:-1]), {}, "one length"),
        (([CLEAN, CLEAN], [CORRUPT]), {}, "in pairs"),
        (([], []), {}, "in pairs"),
        ((CLEAN, CORRUPT, []), {}, "list of tokens"),
        ((CLEAN, CORRUPT, "w5"), {}, "list of tokens"),
        ((CLEAN, CORRUPT, [(1, 2, 3)]), {}, "pair of tokens"),
        ((CLEAN, CORRUPT, [100]), {}, "0 to 99"),
        ((CLEAN, CORRUPT), {"steps": 0}, "steps"),
        (([CLEAN, CLEAN[:5]], [CORRUPT, CORRUPT[:5]]), {"positions": True}, "positions"),
    ],
)
def test_wrong_input_is_told(arguments, options, message):
    with pytest.raises(UserError, match=message):
        eap(boot("gpt2"), *arguments, **options)


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan")])
def test_a_threshold_that_is_none_is_told(threshold):
    with pytest.raises(UserError, match="threshold"):
        acdc(boot("gpt2"), CLEAN, CORRUPT, threshold=threshold)


def test_a_graph_of_another_kind_has_no_circuit_value(planted):
    graph = eap(planted, *PLANTED, PAIR)
    with pytest.raises(UserError, match="eap or acdc"):
        circuit_value(planted, Graph(list(graph.nodes), graph.edges, graph.row_values, {}))
