"""Faithfulness curves: what is kept, what is removed, and what the areas say."""

from dataclasses import replace

import pytest
import torch
from toys import WIDTH, boot, prompt, transcoder
from unweave.circuits import Edges, Graph, Node, trace
from unweave.circuits.experiment.cautions import curve_cautions
from unweave.circuits.experiment.edits import Catalogue, Edit
from unweave.circuits.experiment.effects import Outcome
from unweave.circuits.experiment.faithful import _area, faithfulness
from unweave.circuits.experiment.interventions import run_edited
from unweave.circuits.experiment.removal import Removal
from unweave.circuits.parts import Part, Rule
from unweave.saes.errors import UserError


@pytest.fixture(scope="module")
def traced():
    model, dictionaries = boot("gpt2"), [transcoder(1)]
    return model, dictionaries, trace(model, prompt(), dictionaries, targets=["w5"], max_features=80)


def part(read, *writes, latents=40):
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64) * 0.2

    W_dec = {site: randn(latents, WIDTH) for site in writes}
    return Part(read, randn(latents, WIDTH), randn(latents), W_dec, {}, Rule("relu"))


def centred(logits):
    return float(logits[5] - logits.mean())


def ranked(graph):
    features = [i for i, node in enumerate(graph.nodes) if node.is_feature]
    return sorted(features, key=lambda i: -abs(graph.nodes[i].attribution))


@pytest.mark.parametrize("baseline", ["zero", "mean"])
@pytest.mark.parametrize("others", ["keep", "remove"])
def test_removed_features_are_at_their_baseline_and_kept_ones_as_they_are(traced, others, baseline):
    """Against hooks written out: everything that is removed, and the latents' vectors, by hand."""
    model, dictionaries, graph = traced
    tokens, dictionary = torch.tensor(graph.metadata["tokens"]), dictionaries[0]
    order = ranked(graph)
    kept = {(n.kind, n.layer, n.position, n.index) for n in (graph.nodes[i] for i in order[:20])}
    known = {(n.kind, n.layer, n.position, n.index) for n in (graph.nodes[i] for i in order)}
    clean = model.run_with_cache(tokens[None])[1]
    codes: dict = {}

    def gone(kind, layer, position, index):
        place = (kind, layer, position, index)
        return position > 0 and place not in kept and (others == "remove" or place in known)

    def dense(x):
        found = dictionary.encode(x)
        return torch.zeros(len(x), 80, dtype=x.dtype).scatter_add(1, found.indices.long(), found.values)

    def neurons(layer):
        mean = clean[f"blocks.{layer}.mlp.hook_post"][0, 1:].mean(0) * (baseline == "mean")

        def edit(post, hook):
            post = post.clone()
            for position in range(post.shape[1]):
                for index in range(post.shape[2]):
                    if gone("neuron", layer, position, index):
                        post[0, position, index] = mean[index]
            return post

        return edit

    mean = dense(clean["blocks.1.mlp.hook_in"][0, 1:]).mean(0) * (baseline == "mean")

    def write(out, hook):
        out = out.clone()
        for position, row in enumerate(codes["now"]):
            for index, value in enumerate(row):
                if gone("latent", 1, position, index):
                    out[0, position] += (mean[index] - value) * dictionary.W_dec[index].detach()
        return out

    hooks = [(f"blocks.{layer}.mlp.hook_post", neurons(layer)) for layer in (0, 2)]
    hooks += [("blocks.1.mlp.hook_in", lambda x, hook: codes.update(now=dense(x[0]))), ("blocks.1.mlp.hook_out", write)]
    expected = centred(model.run_with_hooks(tokens[None], fwd_hooks=hooks)[0, -1])
    catalogue = Catalogue(model, dictionaries)
    removal = Removal(catalogue, graph, tokens, order, others == "remove", baseline == "mean")
    full, value = removal.run(Outcome(graph, catalogue), (torch.arange(len(order)) < 20)[None])
    assert full == pytest.approx(centred(model(tokens[None])[0, -1]), abs=1e-9)
    assert float(value[0]) == pytest.approx(expected, abs=1e-9)
    assert {kind for kind, *_ in kept} == {"neuron", "latent"}


@pytest.mark.parametrize(
    ("read", "writes"),
    [
        ("blocks.1.hook_resid_mid", ["blocks.1.hook_resid_mid"]),
        ("blocks.1.hook_mlp_out", ["blocks.1.hook_mlp_out"]),
        ("blocks.0.mlp.hook_in", ["blocks.0.mlp.hook_out", "blocks.2.mlp.hook_out"]),
    ],
)
def test_removing_latents_of_any_part_is_ablating_them(read, writes):
    """Each row of a batch removes its own; a latent's activation is the one that is left when earlier ones are gone."""
    model, tokens, dictionary = boot("gemma2"), prompt(), part(read, *writes)
    cache = model.run_with_cache(tokens[None])[1]
    codes = dictionary.encode(cache[read][0])
    places = [(position, slot) for position in (2, 4) for slot in range(3)]
    nodes = [
        Node("latent", dictionary.layer, position, int(codes.indices[position, slot]), 1.0, "latent", 1.0, site=read)
        for position, slot in places
    ]
    assert all(codes.values[place] > 0 for place in places)
    edges = Edges(*(torch.zeros(0, dtype=torch.int64) for _ in range(2)), torch.zeros(0))
    targets = [{"ids": [5], "weight": 1.0}]
    graph = Graph(nodes, edges, torch.full((6,), torch.nan), {"tokens": tokens.tolist(), "targets": targets})
    catalogue = Catalogue(model, dictionary)
    kept = torch.tensor([[True, False, True, False, False, True], [False] * 6])
    removal = Removal(catalogue, graph, tokens, range(6), False, False)
    _, values = removal.run(Outcome(graph, catalogue), kept)
    gone = [[node for node, keep in zip(nodes, row, strict=True) if not keep] for row in kept.tolist()]
    ran = run_edited(catalogue, tokens, [[Edit(some)] for some in gone])
    torch.testing.assert_close(values, Outcome(graph, catalogue)(ran.final, {}), rtol=0, atol=1e-10)
    assert (values[0] - values[1]).abs() > 1e-6


def test_the_whole_graph_is_the_model_and_its_complement_is_nothing(traced):
    model, dictionaries, graph = traced
    found = faithfulness(graph, model, dictionaries)
    assert found.circuit[-1] == pytest.approx(1.0)
    assert found.complement[-1] == pytest.approx(0.0, abs=1e-12)
    assert all(line[-1] == pytest.approx(1.0) for line in found.random)
    assert found.sizes == (1, 2, 4, 8, 16, 40, 80)
    assert found.shares[-1] == 1
    assert len(found.random) == len(found.cmd_random) == 3
    assert found == faithfulness(graph, model, dictionaries)
    assert found.random != faithfulness(graph, model, dictionaries, seed=1).random


def test_a_ranking_that_is_right_beats_random_circuits_and_a_wrong_one_does_not(traced):
    """The features that most raise the target first, against the same features in the opposite order."""
    model, dictionaries, graph = traced
    raising = [i for i in ranked(graph) if graph.nodes[i].attribution > 0]
    assert len(raising) > 20
    nodes = [
        node if not node.is_feature or i in raising else node._replace(kind="rest")
        for i, node in enumerate(graph.nodes)
    ]
    upside = {i: graph.nodes[j].attribution for i, j in zip(raising, reversed(raising), strict=True)}
    down = [node._replace(attribution=upside.get(i, node.attribution)) for i, node in enumerate(nodes)]
    right, wrong = (
        faithfulness(type(graph)(some, graph.edges, graph.row_values, graph.metadata), model, dictionaries, controls=8)
        for some in (nodes, down)
    )
    chance = sum(right.cmd_random) / 8
    assert right.cmd < chance < wrong.cmd
    assert right.cpr > sum(right.cpr_random) / 8
    assert right.cmd < right.cmd_complement
    assert wrong.cmd > wrong.cmd_complement
    assert not curve_cautions(right)
    assert "cannot be read" in curve_cautions(replace(right, circuit=(4.0, *right.circuit[1:])))[0]
    assert ["random ones" in text or "not complete" in text for text in curve_cautions(wrong)] == [True, True]


def test_areas_by_hand():
    """Flat below the first share: .5 x 2; then the trapezoid from 2 to 1 over .5."""
    assert _area([0.5, 1.0], [2.0, 1.0]) == pytest.approx(1.0 + 0.75)
    assert _area([1.0], [0.3]) == pytest.approx(0.3)


def test_batches_do_not_matter(traced, monkeypatch):
    model, dictionaries, graph = traced
    whole = faithfulness(graph, model, dictionaries, others="remove")
    monkeypatch.setattr("unweave.circuits.experiment.removal.BATCH_TOKENS", 1)
    one = faithfulness(graph, model, dictionaries, others="remove")
    torch.testing.assert_close(torch.tensor(one.circuit), torch.tensor(whole.circuit), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"shares": [0.0]}, "above 0"), ({"others": "drop"}, "keep or remove"), ({"baseline": "median"}, "zero or mean")],
)
def test_what_is_no_curve(traced, options, message):
    model, dictionaries, graph = traced
    with pytest.raises(UserError, match=message):
        faithfulness(graph, model, dictionaries, **options)
