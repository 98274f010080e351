"""Corners that a reading found: pruned graphs under validation, single nodes, what is not finite, saving before forgetting."""

import math
import os

import pytest
import torch
import toys
from unweave.circuits import Direction, ablate, split_heads, steer, trace, validate
from unweave.circuits import eap as edge_patching
from unweave.saes import to_tokens
from unweave.saes.errors import UserError


@pytest.fixture(scope="module")
def model():
    return toys.boot("llama")


@pytest.fixture(scope="module")
def graph(model):
    return trace(model, toys.prompt(7), toys.clt(), max_features=60)


@pytest.mark.parametrize("folded", ["pruned", "bounded"])
def test_folded_edges_do_not_count_against_a_graph(model, graph, folded):
    small = (
        graph.prune()
        if folded == "pruned"
        else trace(model, toys.prompt(7), toys.clt(), max_features=60, max_edges=2000)
    )
    report = validate(small, model, toys.clt(), edges=8, curve=False)
    assert report.frozen < 1e-10
    assert not any("not this model's" in warning for warning in report.warnings)


def test_one_node_is_as_good_as_a_list(model, graph):
    node = next(node for node in graph.nodes if node.is_feature)
    assert torch.equal(
        steer(model, toys.prompt(7), node, 2.0, toys.clt()), steer(model, toys.prompt(7), [node], 2.0, toys.clt())
    )
    assert torch.equal(
        ablate(model, toys.prompt(7), node, toys.clt()), ablate(model, toys.prompt(7), [node], toys.clt())
    )


def test_what_is_not_finite_is_refused(model):
    for vector, bias in ((torch.full((64,), math.nan), 0.0), (torch.ones(64), math.inf)):
        with pytest.raises(UserError, match="finite"):
            trace(model, toys.prompt(5), targets=[Direction(vector, "blocks.1.hook_resid_pre", bias=bias)])
    part = toys.part("blocks.1.hook_resid_pre")
    part.W_enc[3, 4] = math.nan
    with pytest.raises(UserError, match="NaN or infinity"):
        trace(model, toys.prompt(5), [part])


def test_a_graph_without_a_ledger_does_not_claim_one(model):
    graph = edge_patching(model, toys.prompt(5), toys.prompt(5, seed=1))
    assert math.isnan(graph.residual)
    assert "no ledger" in repr(graph)
    with pytest.raises(UserError, match="patching baseline"):
        split_heads(graph, model)


def test_a_dictionary_of_the_stream_says_that_it_cuts_completely(model):
    cut = trace(model, toys.prompt(5), [toys.part("blocks.1.hook_resid_post")], max_features=20)
    assert "complete cut at blocks.1.hook_resid_post" in repr(cut)
    assert "cut" not in repr(trace(model, toys.prompt(5), toys.clt(), max_features=20))


def test_the_graph_is_saved_before_unfinished_rows_go(model, tmp_path):
    kept = tmp_path / "rows"
    with pytest.raises(OSError):
        trace(model, toys.prompt(5), max_features=20, partial=kept, out=tmp_path)
    assert list(kept.glob("rows-*"))
    trace(model, toys.prompt(5), max_features=20, partial=kept, out=tmp_path / "a.graph")
    assert not kept.exists()
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "a.graph").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_text_that_spells_the_bos_gets_no_second_one(model):
    assert to_tokens(model, "<s> w5 w6").tolist() == to_tokens(model, "w5 w6").tolist() == [0, 5, 6]
    with pytest.raises(UserError, match="UTF-8"):
        to_tokens(model, "a\ud800b")


def test_compatible_pruning_counts_influence_over_all_nodes(graph):
    ours, theirs = graph.prune(0.8, 1.0), graph.prune(0.8, 1.0, compatible=True)
    assert theirs.residual < 1e-10
    assert {(node.site, node.index, node.position) for node in theirs.nodes if node.is_feature} <= {
        (node.site, node.index, node.position) for node in ours.nodes if node.is_feature
    }
    assert len(theirs) < len(ours)
