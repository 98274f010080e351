"""Interventions do what they say in the real model; with everything held they move what the graph's edges say."""

import pytest
import torch
from toys import ARCHITECTURES, LAYERS, WIDTH, boot, prompt, transcoder
from unweave.circuits import Graph, Node, ablate, steer, trace
from unweave.circuits.experiment.constrained import everything, hold
from unweave.circuits.experiment.edits import Catalogue, Edit, supernode
from unweave.circuits.experiment.effects import Outcome, direct_effects, estimates, measure, total_effects
from unweave.circuits.experiment.generate import generate
from unweave.circuits.experiment.interventions import intervene
from unweave.circuits.parts import Part, Rule
from unweave.saes.errors import UserError

FREE = dict(rtol=0, atol=1e-12)
HELD = dict(freeze_attention=True, freeze_norms=True, freeze_mlps=True)


def neuron(layer=2, position=5, index=7):
    return Node("neuron", layer, position, index, 1.0, f"L{layer} neuron {index}")


def part(read, *writes, width=WIDTH, latents=40, rule=None, seed=0, out=WIDTH):
    """A random dictionary: an SAE when it writes where it reads, a cross-layer transcoder when it writes several sites."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64) * 0.2

    return Part(
        read,
        randn(latents, width),
        randn(latents),
        {site: randn(latents, width if site == read else out) for site in writes},
        {site: randn(width if site == read else out) for site in writes},
        rule or Rule("relu"),
    )


def active(model, tokens, dictionary, position=3):
    """A node for the strongest latent of a part at a position."""
    _, cache = model.run_with_cache(tokens[None])
    codes = dictionary.encode(cache[dictionary.read][0].flatten(1))
    best = int(codes.values[position].argmax())
    index, value = int(codes.indices[position, best]), float(codes.values[position, best])
    assert value > 0
    return Node("latent", dictionary.layer, position, index, value, f"latent {index}", site=dictionary.read)


def posts(model, tokens, edits, dictionaries=None, **held):
    """What the neurons of every layer do in an edited run: [layer token neuron]."""
    sites = [f"blocks.{layer}.mlp.hook_post" for layer in range(LAYERS)]
    seen = intervene(model, tokens, edits, dictionaries, read=sites, **held).activations
    return torch.stack([seen[site] for site in sites])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ablating_a_neuron_is_zeroing_its_row_of_W_out(name):
    """At the last position of the last layer nothing else reads the neuron, so the two must agree there."""
    model, tokens = boot(name), prompt()
    ablated, before = ablate(model, tokens, [neuron()]), model(tokens[None])[0]
    row = model.blocks[2].mlp.W_out[7]
    row.zero_()
    torch.testing.assert_close(ablated[-1], model(tokens[None])[0, -1], **FREE)
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
    node = next(node for node in trace(model, tokens, dictionaries, max_features=200).nodes if node.kind == kind)
    before = model(tokens[None])[0]
    torch.testing.assert_close(steer(model, tokens, [node], 1.0, dictionaries), before, **FREE)
    assert (steer(model, tokens, [node], 2.0, dictionaries) - before).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (Edit(neuron(0, 2), "ablate"), lambda a, other: 0 * a),
        (Edit(neuron(0, 2), "scale", -1.5), lambda a, other: -1.5 * a),
        (Edit(neuron(0, 2), "set", 0.7), lambda a, other: 0 * a + 0.7),
        (Edit(neuron(0, 2), "steer", 0.7), lambda a, other: a + 0.7),
        (Edit([neuron(0, 2), neuron(0, 4, 9)], "swap"), lambda a, other: other),
    ],
    ids=lambda value: getattr(value, "action", ""),
)
def test_each_action_gives_the_activation_that_it_says(edit, expected):
    model, tokens = boot("gpt2"), prompt()  # whose norms are float64, as RMSNorm's in a plain run are not
    before, after = posts(model, tokens, []), posts(model, tokens, edit)
    assert after[0, 2, 7] == pytest.approx(float(expected(before[0, 2, 7], before[0, 4, 9])), abs=1e-12)
    untouched = torch.ones_like(before[0], dtype=torch.bool)
    untouched[2, 7] = untouched[4, 9] = False
    torch.testing.assert_close(after[0][untouched], before[0][untouched], **FREE)
    if edit.action == "swap":
        assert after[0, 4, 9] == pytest.approx(float(before[0, 2, 7]), abs=1e-12)


def test_another_prompts_activation_can_be_put_in():
    model, tokens, other = boot("gpt2"), prompt(), prompt(8, seed=1)
    node = neuron(1, 3)
    after = posts(model, tokens, Edit(node, "swap", other))
    assert after[1, 3, 7] == pytest.approx(float(posts(model, other, [])[1, 3, 7]), abs=1e-12)
    with pytest.raises(UserError, match="reaches the nodes' positions"):
        intervene(model, tokens, Edit(node, "swap", other[:2]))
    with pytest.raises(UserError, match="two nodes to swap"):
        intervene(model, tokens, Edit(node, "swap"))


@pytest.mark.parametrize(
    ("positions", "where"),
    [(None, [5]), (1, [1]), (-2, [4]), ([0, 3], [0, 3]), (slice(3, None), [3, 4, 5]), (slice(1, -2), [1, 2, 3])],
)
def test_an_edit_acts_at_its_positions_only(positions, where):
    model, tokens = boot("gpt2"), prompt()
    after = posts(model, tokens, Edit(neuron(0), "set", 9.0, positions))[0, :, 7]
    assert (after == 9).nonzero()[:, 0].tolist() == where


def test_edits_of_one_feature_compose_in_order():
    model, tokens = boot("gpt2"), prompt()
    before = posts(model, tokens, [])[0, 5, 7]
    both = [Edit(neuron(0), "steer", 2.0), Edit([neuron(0), neuron(1)], "scale", [3.0, 1.0])]
    assert posts(model, tokens, both)[0, 5, 7] == pytest.approx(float((before + 2) * 3), abs=1e-12)
    assert posts(model, tokens, both[::-1])[0, 5, 7] == pytest.approx(float(before * 3 + 2), abs=1e-12)
    assert posts(model, tokens, Edit([neuron(0)] * 2))[0, 5, 7] == 0


SITES = ["hook_resid_pre", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "mlp.hook_out", "attn.hook_z"]


@pytest.mark.parametrize("suffix", SITES)
@pytest.mark.parametrize("name", ["gemma2", "opt"])
def test_ablating_a_latent_of_an_sae_takes_its_part_out_of_the_site(name, suffix):
    """hook_mlp_out is another name of one site, after the post-norm in Gemma 2 and before none in OPT."""
    model, tokens, site = boot(name), prompt(), f"blocks.1.{suffix}"
    sae = part(site, site)
    node = active(model, tokens, sae)

    def subtract(x, hook):
        flat = x.clone().flatten(2)
        flat[0, 3] -= node.value * sae.W_dec[site][node.index]
        return flat.view(x.shape)

    expected = model.run_with_hooks(tokens[None], fwd_hooks=[(site, subtract)])[0]
    torch.testing.assert_close(ablate(model, tokens, [node], sae), expected, **FREE)
    assert (expected - model(tokens[None])[0]).abs().max() > 1e-4


def test_an_sae_reads_what_a_transcoder_of_its_site_wrote():
    model, tokens, site = boot("gpt2"), prompt(), "blocks.1.mlp.hook_out"
    sae, writer = part(site, site, seed=1), part("blocks.1.mlp.hook_in", site)
    first, second = active(model, tokens, writer), active(model, tokens, sae)
    moved = model.run_with_cache(tokens[None])[1][site][0, 3] - first.value * writer.W_dec[site][first.index]
    codes = sae.encode(moved[None])
    moved = moved - (codes.values * (codes.indices == second.index)).sum() * sae.W_dec[site][second.index]
    seen = intervene(model, tokens, Edit([second, first]), [sae, writer], read=[site]).activations[site]
    torch.testing.assert_close(seen[3], moved, **FREE)


def test_a_change_in_the_middle_of_a_block_is_carried_by_the_stream():
    """hook_resid_mid is only read by the MLP's norm; taking the same vector out of the attention's output is the truth."""
    model, tokens, site = boot("llama"), prompt(), "blocks.1.hook_resid_mid"
    sae = part(site, site)
    node = active(model, tokens, sae)

    def subtract(x, hook):
        x = x.clone()
        x[0, 3] -= node.value * sae.W_dec[site][node.index]
        return x

    expected = model.run_with_hooks(tokens[None], fwd_hooks=[("blocks.1.hook_attn_out", subtract)])[0]
    torch.testing.assert_close(ablate(model, tokens, [node], [sae]), expected, **FREE)


def test_a_cross_layer_latent_is_taken_out_of_every_site_it_writes():
    model, tokens = boot("neox"), prompt()
    writes = [f"blocks.{layer}.mlp.hook_out" for layer in (0, 1, 2)]
    clt = part("blocks.0.mlp.hook_in", *writes, rule=Rule("topk", k=5))
    node = active(model, tokens, clt)

    def subtracting(site):
        def subtract(out, hook):
            out = out.clone()
            out[0, 3] -= node.value * clt.W_dec[site][node.index]
            return out

        return subtract

    expected = model.run_with_hooks(tokens[None], fwd_hooks=[(site, subtracting(site)) for site in writes])[0]
    torch.testing.assert_close(ablate(model, tokens, [node], [[clt]]), expected, **FREE)
    one = model.run_with_hooks(tokens[None], fwd_hooks=[(writes[0], subtracting(writes[0]))])[0]
    assert (one - expected).abs().max() > 1e-4


def test_a_node_of_an_older_graph_is_read_at_the_mlps_input():
    model, tokens, dictionary = boot("neox"), prompt(), transcoder(1)
    node = active(model, tokens, part("blocks.1.mlp.hook_in", "blocks.1.mlp.hook_out"))._replace(index=2)
    old = ablate(model, tokens, [node._replace(site="")], [dictionary])
    torch.testing.assert_close(old, ablate(model, tokens, [node], [dictionary]), rtol=0, atol=0)


def test_an_absent_latent_can_be_set_but_not_ablated():
    """Its value in this run is 0: removing it changes nothing, setting it to v adds v times its row."""
    model, tokens, dictionary = boot("llama"), prompt(), transcoder(1)
    _, cache = model.run_with_cache(tokens[None])
    there = set(dictionary.encode(cache["blocks.1.mlp.hook_in"][0]).indices[3].tolist())
    index = next(latent for latent in range(80) if latent not in there)
    node = Node("latent", 1, 3, index, 1.0, "absent")
    torch.testing.assert_close(ablate(model, tokens, [node], [dictionary]), model(tokens[None])[0], **FREE)
    read = ("blocks.1.mlp.hook_out",)
    out = intervene(model, tokens, Edit(node, "set", 2.0), [dictionary], read=read).activations[read[0]]
    moved = out - cache["blocks.1.mlp.hook_out"][0]
    torch.testing.assert_close(moved[3], 2 * dictionary.W_dec[index].detach(), **FREE)


@pytest.mark.parametrize(("name", "c"), [(name, 2.5) for name in ARCHITECTURES] + [("gemma2", 0.0)])
def test_held_model_moves_exactly_as_the_edges_say(name, c):
    """I4: a_s -> c a_s changes every later row by (c - 1) A[t, s]."""
    model, tokens, dictionaries = boot(name), prompt(), [transcoder(1, skip=True)]
    graph = trace(model, tokens, dictionaries, targets=[("w5", "w9")], max_features=300)
    catalogue = Catalogue(model, dictionaries)
    features = [i for i, node in enumerate(graph.nodes) if node.is_feature]
    sources = [i for i in features if graph.nodes[i].layer < 2][::20]
    later = [i for i in features if graph.nodes[i].layer > 0]
    held = hold(catalogue, tokens, everything(model))
    nodes = [graph.nodes[i] for i in later]
    sets = [[], *([graph.nodes[i]] for i in sources)]
    found = measure(catalogue, tokens, Outcome(graph, catalogue), sets, nodes, held=held, rule="half", scale=c)
    edges = (1 - c) * direct_effects(graph, sources)
    torch.testing.assert_close(found.rows[1:].T, edges[later], rtol=0, atol=1e-10)
    torch.testing.assert_close(found.value[1:], edges[len(graph) - 1], rtol=0, atol=1e-10)
    assert {graph.nodes[i].kind for i in sources} == {graph.nodes[i].kind for i in later} == {"neuron", "latent"}
    assert (edges[later].abs().amax(1) > 1e-4).double().mean() > 0.5


@pytest.mark.parametrize("name", ["gpt2", "opt", "qwen3", "gemma2"])
def test_held_patterns_mix_the_values_of_this_run(name):
    """OPT's hook_pattern is read-only, so that a test of the hook itself would prove nothing."""
    model, tokens = boot(name), prompt()
    edit = Edit(neuron(0, 1), "set", 30.0)
    read = ["blocks.1.attn.hook_v", "blocks.1.attn.hook_z"]
    seen = intervene(model, tokens, edit, freeze_attention=True, read=read).activations
    pattern = model.run_with_cache(tokens[None])[1]["blocks.1.attn.hook_pattern"][0]
    values = seen[read[0]].unflatten(1, (-1, 16)).repeat_interleave(4 // (seen[read[0]].shape[1] // 16), 1)
    mixed = torch.einsum("hqk,khe->qhe", pattern, values).flatten(1)
    torch.testing.assert_close(seen[read[1]], mixed, rtol=0, atol=1e-6)
    free = intervene(model, tokens, edit, read=read).activations[read[1]]
    assert (free - mixed).abs().max() > 1e-2


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_holding_everything_changes_nothing_by_itself(name):
    """RMSNorm of a float64 model is exact here and float32 in the plain run."""
    model, tokens = boot(name), prompt()
    held = intervene(model, tokens, [], [transcoder(1, skip=True)], **HELD).logits
    torch.testing.assert_close(held, model(tokens[None])[0], rtol=0, atol=1e-5)


def test_constrained_blocks_give_their_own_output_plus_the_edit_and_later_ones_answer():
    model, tokens = boot("gpt2"), prompt()
    edit = Edit([neuron(0, 2), neuron(1, 3)], "steer", 5.0)
    read = ["blocks.1.hook_resid_post", "blocks.2.mlp.hook_post"]
    seen = intervene(model, tokens, edit, constrained=range(0, 2), read=read).activations
    clean = model.run_with_cache(tokens[None])[1]
    expected = clean["blocks.1.hook_resid_post"][0].clone()
    for layer, position in ((0, 2), (1, 3)):
        expected[position] += 5 * model.blocks[layer].mlp.W_out[7]
    torch.testing.assert_close(seen[read[0]], expected, **FREE)
    beyond = model(expected[None], start_at_layer=2)[0]
    torch.testing.assert_close(intervene(model, tokens, edit, constrained=range(0, 2)).logits, beyond, **FREE)
    assert (seen[read[1]] - clean[read[1]][0])[4].abs().max() > 1e-6
    with pytest.raises(UserError, match="blocks from 0 to 2"):
        intervene(model, tokens, edit, constrained=range(2, 4))


def test_a_cross_layer_latent_of_clamped_blocks_writes_there_and_not_beyond():
    model, tokens = boot("gpt2"), prompt()
    writes = [f"blocks.{layer}.mlp.hook_out" for layer in (0, 1, 2)]
    clt = part("blocks.0.mlp.hook_in", *writes)
    node = active(model, tokens, clt)
    expected = model.run_with_cache(tokens[None])[1]["blocks.1.hook_resid_post"][0].clone()
    expected[3] -= node.value * (clt.W_dec[writes[0]] + clt.W_dec[writes[1]])[node.index]
    beyond = model(expected[None], start_at_layer=2)[0]
    found = intervene(model, tokens, Edit(node), clt, constrained=range(0, 2)).logits
    torch.testing.assert_close(found, beyond, **FREE)


def test_two_edits_add_up_in_the_held_model_and_not_in_the_free_one():
    model, tokens, site = boot("llama"), prompt(), "blocks.1.hook_resid_pre"
    sae = part(site, site)
    edits = [Edit(active(model, tokens, sae), "scale", 3.0), Edit(neuron(1, 2), "steer", 2.0)]

    def moved(chosen, **held):
        return intervene(model, tokens, chosen, sae, **held).logits - intervene(model, tokens, [], sae, **held).logits

    for held, adds in ((HELD, True), ({}, False)):
        apart = (moved(edits, **held) - moved(edits[:1], **held) - moved(edits[1:], **held)).abs().max()
        assert bool(apart < 1e-10) == adds


def test_all_paths_of_a_full_graph_predict_the_attribution():
    model, tokens, dictionaries = boot("gpt2"), prompt(), [transcoder(1)]
    graph = trace(model, tokens, dictionaries, targets=["w5"], max_features=10_000)
    features = [i for i, node in enumerate(graph.nodes) if node.is_feature][::40]
    predicted = total_effects(graph, features)[len(graph) - 1]
    torch.testing.assert_close(predicted, -graph.column("attribution")[features], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["gpt2", "opt", "gemma2"])
def test_estimates_are_the_slope_of_the_free_models_answer(name):
    model, tokens, dictionaries = boot(name), prompt(), [transcoder(1)]
    graph = trace(model, tokens, dictionaries, targets=["w5"], max_features=50)
    nodes = [node for node in graph.nodes if node.is_feature][::10]
    catalogue = Catalogue(model, dictionaries)
    outcome = Outcome(graph, catalogue)
    slopes = estimates(catalogue, tokens, outcome, nodes)
    step = 1e-2  # smaller steps drown in RMSNorm's float32
    up, down = (
        measure(catalogue, tokens, outcome, [[], *([n] for n in nodes)], scale=1 + s).value for s in (step, -step)
    )
    torch.testing.assert_close(slopes, (down - up)[1:] / (2 * step), rtol=1e-2, atol=1e-3)
    assert slopes.abs().max() > 0.01


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "opt"])
def test_generation_with_the_cache_is_generation_without(name):
    model, tokens, dictionaries = boot(name), prompt(), [transcoder(1)]
    latent = Node("latent", 1, 2, 3, 1.0, "latent")
    edits = [
        Edit(neuron(0, 2), "steer", 20.0, slice(2, None)),
        Edit(latent, "set", 9.0, slice(4, None)),
        Edit(neuron(1, 3)),
    ]
    runs = [generate(model, tokens, edits, dictionaries, tokens=6, use_cache=use) for use in (True, False)]
    assert torch.equal(runs[0].tokens, runs[1].tokens)
    torch.testing.assert_close(runs[0].logits, runs[1].logits, **FREE)
    plain = generate(model, tokens, tokens=6)
    assert (runs[0].logits[0] - plain.logits[0]).abs().max() > 1e-3
    closed = [edit._replace(positions=edit.positions and slice(edit.positions.start, 6)) for edit in edits]
    ended = generate(model, tokens, closed, dictionaries, tokens=2)
    torch.testing.assert_close(ended.logits[0], runs[0].logits[0], **FREE)
    assert (runs[0].logits[1] - ended.logits[1]).abs().max() > 1e-3


def test_generation_without_edits_is_greedy_decoding():
    model, tokens = boot("llama"), prompt()
    text = tokens
    for _ in range(5):
        text = torch.cat([text, model(text[None])[0, -1].argmax()[None]])
    untouched = generate(model, tokens, Edit(neuron(0), "scale", 1.0, slice(0, None)), tokens=5)
    assert untouched.tokens.tolist() == text[len(tokens) :].tolist()
    assert untouched.text == model.tokenizer.decode(untouched.tokens)
    assert untouched.logits.shape == (5, 100)


def test_sampling_takes_its_seed_and_attention_is_frozen_for_the_prompt():
    model, tokens = boot("gpt2"), prompt()
    drawn = [generate(model, tokens, temperature=3.0, seed=seed, tokens=6).tokens.tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    edit = Edit(neuron(0, 1), "set", 30.0)
    frozen = generate(model, tokens, edit, freeze_attention=True, tokens=2)
    held = intervene(model, tokens, edit, freeze_attention=True).logits[-1]
    torch.testing.assert_close(frozen.logits[0], held, **FREE)
    assert (frozen.logits[0] - generate(model, tokens, edit, tokens=1).logits[0]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "at least 1 token"),
        ({"tokens": 100}, "at most 64 tokens"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_what_cannot_be_generated(options, message):
    with pytest.raises(UserError, match=message):
        generate(boot("llama"), prompt(), **options)


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


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Edit(neuron(), "delete"), "action of ablate, scale"),
        (Edit(neuron(), "set"), "finite number"),
        (Edit(neuron(), "scale", float("nan")), "finite number"),
        (Edit([neuron(), neuron(0)], "steer", [1.0, 2.0, 3.0]), "one per node"),
        (Edit(neuron(), "ablate", positions=6), "positions of a prompt of 6"),
        (Edit(neuron(), "ablate", positions=slice(0, None, 2)), "steps of 1"),
    ],
)
def test_what_is_no_edit(edit, message):
    with pytest.raises(UserError, match=message):
        intervene(boot("llama"), prompt(), edit)


def test_dictionaries_of_another_model_site_or_width_are_refused():
    model, tokens = boot("llama"), prompt()
    foreign = transcoder(1, metadata={"model": {"name": "other", "fingerprint": "0" * 32}})
    site = "blocks.1.mlp.hook_in"
    narrow = part(site, "blocks.1.mlp.hook_out", width=32)
    node = Node("latent", 1, 2, 3, 1.0, "L1 latent 3")
    for dictionaries, message in (
        (foreign, "expected dictionaries of"),
        ([transcoder(1), transcoder(1, seed=1)], "got two for"),
        (part("blocks.7.hook_resid_pre", "blocks.7.hook_resid_pre"), "site of this model"),
        (narrow, "width 64"),
    ):
        with pytest.raises(UserError, match=message):
            ablate(model, tokens, [node], dictionaries)


def test_a_supernode_is_its_nodes():
    graph = trace(boot("llama"), prompt(), max_features=20)
    features = [i for i, node in enumerate(graph.nodes) if node.is_feature][:3]
    named = Graph(
        list(graph.nodes), graph.edges, graph.row_values, graph.metadata | {"supernodes": [["say", *features]]}
    )
    assert supernode(named, "say") == [graph.nodes[i] for i in features]
    with pytest.raises(UserError, match=r"supernodes \(say\)"):
        supernode(named, "think")
