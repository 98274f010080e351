"""Choosing by influence does what its definition says, and bounding edges keeps the largest and every sum."""

import importlib
from functools import cache

import pytest
import torch
from toys import boot, clt, part, prompt, transcoder
from unweave.circuits import trace
from unweave.circuits.tracing.edges import Piece, assemble, sparse
from unweave.circuits.tracing.record import Recorded

module = importlib.import_module("unweave.circuits.trace")  # the package's name `trace` is the function
TOKENS = prompt(3)

model = cache(boot)

CASES = {
    "neurons": ("llama", list, {}),
    "two rows": ("llama", lambda: [transcoder(0, skip=True)], {"neurons": "rows"}),
    "cross-layer": ("gemma2", clt, {}),
    "plain": ("opt", lambda: [transcoder(1, skip=True)], {}),
    "parallel": (
        "neox",
        lambda: [part("blocks.1.hook_attn_out"), part("blocks.2.hook_resid_pre", seed=2)],
        {"neurons": "none"},
    ),
    "an SAE over neurons": (
        "qwen3",
        lambda: [part("blocks.1.mlp.hook_out"), part("blocks.0.mlp.hook_out", seed=3)],
        {},
    ),
}


SMALL = ("cross-layer", "parallel")  # fewer than 40 features that influence reaches


def run(case, **options):
    name, given, own = CASES[case]
    return trace(model(name), TOKENS, given(), **{"targets": [5, ("w6", 9)], **own, **options})


@cache
def full(case):
    return run(case, max_features=100_000)


def key(node):
    return node.kind, node.site, node.layer, node.position, node.index


def dense(graph):
    matrix = torch.zeros(len(graph), len(graph), dtype=torch.float64)
    matrix[graph.edges.target.long(), graph.edges.source.long()] = graph.edges.weight
    return matrix


def per_position(matrix, graph):
    """Columns with the rest leaves of one position added up."""
    to = list(range(len(graph)))
    for place in graph.of_kind("rest").tolist():
        to[place] = next(
            i for i in graph.of_kind("rest").tolist() if graph.nodes[i].position == graph.nodes[place].position
        )
    return torch.zeros_like(matrix).index_add_(1, torch.tensor(to), matrix)


def expanded_by_definition(graph, max_features):
    """Attribution.md 1.3: influence through the rows known so far; the best unexpanded features are expanded; again.

    A neuron in two rows counts once, and its row (half gate, half up) is known from the start.
    """
    shares = dense(graph).abs()
    shares = shares / shares.sum(1, keepdim=True).clamp_min(1e-300)
    weights, known = graph.column("weight"), graph.is_kind("logit")
    factors = {key(node)[1:]: [] for node in graph.nodes if node.is_feature}
    for place, node in enumerate(graph.nodes):
        if node.kind in ("gate", "up"):
            factors[key(node)[1:]].append(place)
    split = torch.tensor([node.is_feature and bool(factors[key(node)[1:]]) for node in graph.nodes])
    features = graph.is_kind("neuron", "latent")
    chosen = torch.zeros_like(known)
    while int(chosen.sum()) < max_features:
        through = torch.where((known | split)[:, None], shares, 0.0)
        influence = torch.linalg.solve(torch.eye(len(graph), dtype=torch.float64) - through.T, weights) - weights
        waiting = torch.where(features & ~chosen, influence, 0.0)
        count = min(max_features // 16 + 1, max_features - int(chosen.sum()), int((waiting > 0).sum()))
        if not count:
            break
        for place in waiting.topk(count).indices.tolist():
            chosen[place] = True
            for row in factors[key(graph.nodes[place])[1:]] or [place]:
                known[row] = True
    return {key(node) for node, is_chosen in zip(graph.nodes, chosen.tolist(), strict=True) if is_chosen}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("max_features", [5, 40])
def test_influence_expands_what_its_definition_says(case, max_features):
    graph = run(case, max_features=max_features, select="influence")
    ours = {key(node) for node in graph.nodes if node.is_feature}
    assert ours == expanded_by_definition(full(case), max_features)
    assert len(ours) == max_features or (case in SMALL and 5 < len(ours) < 40)
    assert graph.residual <= 1e-12


@pytest.mark.parametrize("case", CASES)
def test_rows_found_on_the_way_are_the_rows_of_the_chosen(case, monkeypatch):
    """The attribution mode given the same features makes the same graph: nodes, totals, values, edges, rest leaves."""
    true, chosen = module.chosen_of, []

    def keeping(*arguments):
        chosen.append(true(*arguments))
        return chosen[-1]

    monkeypatch.setattr(module, "chosen_of", keeping)
    ours = run(case, max_features=12, select="influence")
    monkeypatch.setattr(module, "choose", lambda *_: chosen[-1])
    theirs = run(case, max_features=12)
    assert ours.nodes == theirs.nodes
    assert len(ours.of_kind("rest"))
    one, two = dense(ours), dense(theirs)
    if case == "cross-layer":  # a latent that writes at several places is folded where it first does
        one, two = (per_position(matrix, ours) for matrix in (one, two))
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.row_values, theirs.row_values, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("case", ["neurons", "cross-layer", "an SAE over neurons"])
def test_what_is_not_expanded_is_in_the_rest_leaf_where_it_is_first_written(case):
    """Against the full graph: every entry of the common nodes is the same, and rests hold the others' sums."""
    graph, whole = run(case, max_features=12, select="influence"), full(case)
    place = {key(node): i for i, node in enumerate(whole.nodes)}
    common = [
        i for i, node in enumerate(graph.nodes) if key(node) in place and node.kind not in ("rest", "first", "error")
    ]
    there = [place[key(graph.nodes[i])] for i in common]
    ours, theirs = dense(graph), dense(whole)
    torch.testing.assert_close(ours[common][:, common], theirs[there][:, there], rtol=1e-12, atol=1e-12)
    kept = {key(node) for node in graph.nodes}
    left_out = [i for i, node in enumerate(whole.nodes) if node.is_feature and key(node) not in kept]
    rest = graph.of_kind("rest")
    torch.testing.assert_close(ours[common][:, rest].sum(1), theirs[there][:, left_out].sum(1), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("case", [*SMALL, "two rows"])
def test_influence_over_all_features_is_the_full_graph(case):
    """But for those that no influence reaches, whose edges would all be zero."""
    graph, whole = run(case, max_features=100_000, select="influence"), full(case)
    place = {key(node): i for i, node in enumerate(graph.nodes) if node.is_feature}
    reached = set(whole.edges.source.tolist())
    missing = [i for i, node in enumerate(whole.nodes) if node.is_feature and key(node) not in place]
    fed = torch.zeros(len(whole), dtype=torch.bool)
    fed[[i for i in range(len(whole)) if whole.nodes[i].kind == "logit"]] = True
    for row in reversed(range(len(whole))):
        if fed[row]:
            fed[whole.edges.source[whole.edges.target == row].long()] = True
    assert not fed[missing].any() and reached
    common = [i for i, node in enumerate(whole.nodes) if key(node) in place]
    ours = [place[key(whole.nodes[i])] for i in common]
    torch.testing.assert_close(dense(graph)[ours][:, ours], dense(whole)[common][:, common], rtol=1e-12, atol=1e-12)


def test_influence_finds_what_total_attribution_cancels_and_the_reverse():
    """The two rankings are different questions."""
    sets = [
        {key(n) for n in run("neurons", max_features=30, select=s).nodes if n.is_feature}
        for s in ("attribution", "influence")
    ]
    assert 0 < len(sets[0] & sets[1]) < 30


@pytest.mark.parametrize("select", ["attribution", "influence"])
@pytest.mark.parametrize("case", ["neurons", "cross-layer", "plain"])
@pytest.mark.parametrize("max_edges", [1, 100, 400])
def test_bounded_rows_keep_their_largest_entries_and_all_sums(case, select, max_edges):
    options = dict(max_features=60, select=select)
    whole, few = run(case, **options), run(case, max_edges=max_edges, **options)
    rows = int((~few.row_values.isnan()).sum())
    most = max(1, max_edges // rows)
    assert len(few.edges.weight) <= max(max_edges, rows) + 2 * rows
    assert few.residual <= 1e-12
    extra = [i for i, node in enumerate(few.nodes) if node.kind == "rest" and node.layer == -1]
    raises, lowers = extra
    assert [few.nodes[i].label for i in extra] == ["everything else that raises it", "everything else that lowers it"]
    same = [i for i in range(len(few)) if i not in extra]
    assert [few.nodes[i] for i in same] == list(whole.nodes)
    ours, theirs = dense(few), dense(whole)
    assert not ours[extra].any()
    for place, row in zip(same, theirs, strict=True):
        mine = ours[place][same]
        kept = mine != 0
        assert torch.equal(mine[kept], row[kept]) or float((mine - row)[kept].abs().max()) < 1e-14
        assert int(kept.sum()) == min(most, int((row != 0).sum()))
        dropped = torch.where(kept, 0.0, row)
        if kept.any():
            assert float(dropped.abs().max()) <= float(mine[kept].abs().min())
        expected = [float(dropped.clamp_min(0).sum()), float(dropped.clamp_max(0).sum())]
        assert [float(ours[place, raises]), float(ours[place, lowers])] == pytest.approx(expected, abs=1e-12)


def test_a_bound_that_is_not_reached_changes_nothing():
    assert not [
        n for n in run("plain", max_features=20, max_edges=40_000_000).nodes if n.kind == "rest" and n.layer == -1
    ]


def test_a_sparse_row_by_hand():
    weights = torch.tensor([[3.0, -1.0, 0.0, 0.5, -1.0, 0.0, 0.0], [0.0, 0.0, -2.0, 0.0, 0.0, 0.0, 0.0]])
    rows = Recorded(torch.tensor([4, 2]), torch.tensor([1.5, -2.0]), weights)
    piece, bounded = sparse(rows), sparse(rows, 1, 5)
    assert piece.count.tolist() == [4, 1] and piece.source.tolist() == [0, 1, 3, 4, 2]
    assert piece.weight.tolist() == [3.0, -1.0, 0.5, -1.0, -2.0]
    assert bounded.count.tolist() == [3, 1] and bounded.source.tolist() == [0, 5, 6, 2]
    assert bounded.weight.tolist() == [3.0, 0.5, -2.0, -2.0]


def test_pieces_in_any_order_make_one_graph():
    two = (torch.tensor([5, 3]), torch.tensor([2, 1]), torch.tensor([0, 4, 0]).int(), torch.tensor([1.0, 2.0, 3.0]))
    one = (torch.tensor([4]), torch.tensor([2]), torch.tensor([1, 2]).int(), torch.tensor([5.0, 6.0]))
    pieces = [Piece(*two, torch.tensor([3.0, 3.0])), Piece(*one, torch.tensor([11.0]))]
    for order in (pieces, pieces[::-1]):
        edges, values = assemble(list(order), 6)
        assert edges.target.tolist() == [3, 4, 4, 5, 5]
        assert edges.source.tolist() == [0, 1, 2, 0, 4]
        assert edges.weight.tolist() == [3.0, 5.0, 6.0, 1.0, 2.0]
        assert values.isnan().tolist() == [True] * 3 + [False] * 3 and values[3:].tolist() == [3.0, 11.0, 3.0]
