"""Ground truth: worlds whose circuits are known, in smaller sizes than `unweave bench circuits` runs; and that each measure can fail."""

import json

import pytest
import torch
from unweave.circuits import Edges, Graph, trace
from unweave.circuits.experiment.statistics import auroc
from unweave.circuits.worlds.addition import P, addition, power
from unweave.circuits.worlds.exact import EVERYTHING, Held, _columns, identities, random_world
from unweave.circuits.worlds.induction import induction, places, repeated
from unweave.circuits.worlds.metamorphic import metamorphic, taken
from unweave.circuits.worlds.planted import average_precision, compare, plant, planted
from unweave.circuits.worlds.programs import count, deviations, programs
from unweave.circuits.worlds.shortcut import TRUE, boolean, disagreement, faithful, prompt, shortcut, shortcuts
from unweave.circuits.worlds.suites import SUITES, failed, run_suite
from unweave.circuits.worlds.tools import at_least, at_most, edges_of, neurons_as_part
from unweave.saes.errors import UserError
from unweave.viz.bench import bench


def test_the_identities_hold_on_random_models_with_exact_neurons():
    assert not failed(identities(sources=8))


def test_a_wrong_edge_shows_when_its_source_is_pushed():
    """Negative control of I3 and I4: all edges 1 % too heavy."""
    model, tokens = random_world(0, norm="LN")
    graph, held = trace(model, tokens, max_features=EVERYTHING), Held(model, tokens)
    heavier = Edges(graph.edges.target, graph.edges.source, graph.edges.weight * 1.01)
    wrong = Graph(list(graph.nodes), heavier, graph.row_values, graph.metadata)
    assert _columns(held, graph, 2.0, 2, seed=0) <= 1e-10 < 1e-4 < _columns(held, wrong, 2.0, 2, seed=0)


def test_splitting_scaling_and_permuting_latents_changes_nothing_else():
    assert not failed(metamorphic())


def test_scaling_only_the_decoder_changes_edges():
    """Negative control of the metamorphic suite: without the encoder's share the edges out of the latent are another's."""
    model, tokens = random_world(0, norm="LN")
    part = neurons_as_part(model, 1)
    louder = taken(part, torch.arange(part.latents), decoder=torch.full((part.latents,), 2.0, dtype=torch.float64))
    before, after = (edges_of(trace(model, tokens, [each])) for each in (part, louder))
    assert max(abs(after.get(edge, 0.0) - weight) for edge, weight in before.items()) > 1e-3


def test_planted_edges_are_told_from_the_rest():
    rows = planted(prompts=2, noises=(0.0, 2.0), interferences=())
    assert not failed(rows)
    clean, noisy = (row.measured for row in rows if "average precision" in row.what)
    assert clean > 0.9 > noisy


def test_activity_alone_does_not_tell_planted_edges():
    """Negative control: what fires strongly together is not what is connected, and a random order scores one half."""
    found = compare(plant(0), torch.arange(12), 0.0, 0)
    assert auroc(found.size, found.truth) > 0.99
    assert auroc(found.together, found.truth) < 0.9
    order = torch.randperm(len(found.size), generator=torch.Generator().manual_seed(0))
    assert auroc(found.size[order], found.truth) < 0.8


def test_every_edge_of_a_compiled_program_is_found_and_no_other():
    assert not failed(programs())


def test_an_edge_that_a_program_does_not_have_shows():
    program = count()
    graph = trace(program.model, program.tokens, targets=program.targets, max_features=EVERYTHING, centred=False)
    first, *rest = program.edges
    used, other = deviations(graph, {edge: program.edges[edge] for edge in rest})
    assert used <= 1e-9 < abs(program.edges[first]) == pytest.approx(other)


def test_induction_and_previous_token_heads_are_named():
    assert not failed(induction(prompts=4))


def test_where_the_next_token_can_be_known():
    """By hand: after `<s> 5 6 | 5 6` the 6 is known at the second 5."""
    tokens = torch.tensor([[0, 5, 6, 5, 6]])
    known = torch.tensor([False, False, False, True])
    assert [each.tolist() for each in places(tokens, known)] == [[0], [3], [1]]
    text = repeated(3, torch.Generator().manual_seed(0), chunk=3)
    sequence, query, key = places(*text)
    assert len(sequence) == 3 * int(text.known.sum())
    assert torch.equal(text.tokens[sequence, query + 1], text.tokens[sequence, key + 1])


def test_modular_addition_sits_in_a_few_frequencies():
    assert not failed(addition(step=16))


def test_power_of_a_pure_wave_is_one_frequency():
    wave = torch.cos(2 * torch.pi * 7 * torch.arange(P) / P)[None]
    assert float(power(wave)[6]) == pytest.approx(1.0)
    assert len(power(wave)) == P // 2


def test_validate_exposes_the_shortcut():
    assert not failed(shortcuts())


def test_both_transcoders_reconstruct_the_boolean_model_but_one_is_wrong_about_it():
    model = boolean()
    tokens = prompt("1001")
    graphs = {
        name: trace(model, tokens, parts, targets=[TRUE], centred=False)
        for name, parts in (("faithful", faithful(model)), ("shortcut", shortcut(model)))
    }
    assert all(graph.residual <= 1e-10 for graph in graphs.values())
    assert disagreement(graphs["faithful"], model, faithful(model)) < 1e-6
    assert disagreement(graphs["shortcut"], model, shortcut(model)) > 0.9


def test_auroc_and_average_precision_by_hand():
    scores = torch.tensor([0.9, 0.8, 0.7, 0.7, 0.1])
    truth = torch.tensor([True, False, True, False, False])
    # Of 6 pairs (true, false): 0.9 wins all 3; the 0.7 loses to 0.8, ties with 0.7, wins against 0.1.
    assert auroc(scores, truth) == pytest.approx((3 + 0 + 0.5 + 1) / 6)
    assert average_precision(scores, truth) == pytest.approx((1 / 1 + 2 / 3) / 2)
    with pytest.raises(UserError, match="both true and false"):
        auroc(scores, torch.zeros(5, dtype=torch.bool))


def test_a_row_that_is_not_a_number_fails():
    nan = float("nan")
    assert not at_most("", "", nan, 1.0).passed
    assert not at_least("", "", nan, 1.0).passed


def test_bench_returns_json_data_and_refuses_what_it_does_not_know(capsys):
    found = bench("circuits", ("shortcut", "programs"))
    assert json.loads(json.dumps(found)) == found
    assert found["missed"] == 0
    assert set(found["seconds"]) == {"shortcut", "programs"}
    assert "programs" in capsys.readouterr().err
    with pytest.raises(UserError, match="expected circuits"):
        bench("speed")
    with pytest.raises(UserError, match="expected suites among identities"):
        bench("circuits", ("nothing",))
    with pytest.raises(UserError, match="expected suites among"):
        run_suite("nothing")
    assert set(SUITES) == {"identities", "planted", "programs", "induction", "addition", "shortcut", "metamorphic"}
