"""Smaller graphs that still close: pruning, subgraph scores, supernodes, comparison, alternative routes, predicted ablation."""

import itertools

import pytest
import torch
from toys import boot, prompt
from unweave.circuits import Edges, Graph, Node, trace
from unweave.circuits.simplify.compare import consensus, difference, merge
from unweave.circuits.simplify.grouping import quality, supernodes
from unweave.circuits.simplify.paths import ablated, alternatives
from unweave.circuits.simplify.prune import _largest, prune
from unweave.circuits.simplify.scores import coalesce, influence, normalised, scores, target_weights
from unweave.circuits.simplify.supernodes import Supernode, collapse, group, supernode_weights
from unweave.saes.errors import UserError

LAYERS, TOKENS, PER_PLACE = 4, 3, 3
SITES = [f"blocks.{layer}.mlp.hook_in" for layer in range(LAYERS)]


def build(nodes, weights, metadata=None):
    """A graph from {(target, source): weight}; rows get the sums of their edges."""
    pairs = sorted(weights)
    target, source = torch.tensor(pairs, dtype=torch.int32).reshape(-1, 2).T
    weight = torch.tensor([weights[pair] for pair in pairs], dtype=torch.float64)
    total = torch.zeros(len(nodes), dtype=torch.float64).index_add_(0, target, weight)
    has_row = torch.tensor([node.is_feature or node.kind == "logit" for node in nodes])
    return Graph(nodes, Edges(target, source, weight), torch.where(has_row, total, torch.nan), metadata or {})


def random_graph(seed=0, *, tokens=TOKENS, density=0.8, index=0, per_place=PER_PLACE):
    """Tokens, biases, errors, latents of four layers and two logits; each row is fed by all that comes before it."""
    generator = torch.Generator().manual_seed(seed)
    nodes = [Node("token", -1, p, 5 + p, 1.0, f"t{p}") for p in range(tokens)]
    nodes += [Node("bias", layer, -1, -1, 0.0, "bias", site=SITES[layer]) for layer in range(LAYERS)]
    nodes += [Node("error", layer, p, -1, 1.0, "error") for layer in range(LAYERS) for p in range(tokens)]
    for layer in range(LAYERS):
        for p in range(tokens):
            for j in range(per_place):
                label = f"L{layer} latent {index + j}"
                nodes.append(Node("latent", layer, p, index + j, 1.0, label, site=SITES[layer]))
    nodes += [Node("logit", LAYERS, tokens - 1, 7 + j, 1.0, f"y{j}", weight=0.6 - 0.2 * j) for j in range(2)]
    weights = {}
    for t, target in enumerate(nodes):
        if target.is_feature or target.kind == "logit":
            for s, source in enumerate(nodes[:t]):
                if source.layer < target.layer and source.position <= target.position and source.kind != "logit":
                    weight, chance = torch.randn((), generator=generator), torch.rand((), generator=generator)
                    if chance < density or source.kind == "token":
                        weights[t, s] = float(weight)
    return build(nodes, weights, {"prompt": "x" * seed, "tokens": list(range(tokens))})


def dense(graph):
    matrix = torch.zeros(len(graph), len(graph), dtype=torch.float64)
    return matrix.index_put_((graph.edges.target.long(), graph.edges.source.long()), graph.edges.weight)


def contents(graph):
    """Rows and edges by node, whatever the order of the nodes."""
    name = [(*node[:4], node.site, node.label if node.index < 0 else "") for node in graph.nodes]
    rows = {name[i]: value for i, value in enumerate(graph.row_values.tolist())}
    pairs = zip(graph.edges.target.tolist(), graph.edges.source.tolist(), graph.edges.weight.tolist(), strict=True)
    return rows, {(name[t], name[s]): weight for t, s, weight in pairs}


def assert_same(a, b, tolerance=1e-12):
    for one, two in zip(contents(a), contents(b), strict=True):
        assert one.keys() == two.keys()
        assert list(one.values()) == pytest.approx([two[key] for key in one], abs=tolerance, nan_ok=True)


def arriving(graph):
    return influence(graph.edges, normalised(graph.edges, len(graph)), target_weights(graph))


def in_causal_order(graph):
    return bool((graph.edges.source < graph.edges.target).all())


# pruning and scores


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_largest_is_what_a_full_sort_keeps(dtype, share):
    size = torch.randn(3001, dtype=dtype, generator=torch.Generator().manual_seed(0)).abs() ** 5
    size[::7] = 0
    ordered = size.double().sort(descending=True)
    count = (
        int(((ordered.values.cumsum(0) - ordered.values) < share * size.double().sum()).sum()) if share < 1 else 3001
    )
    expected = torch.zeros(3001, dtype=torch.bool)
    expected[ordered.indices[:count]] = True
    assert torch.equal(_largest(size, share), expected & (size > 0))


def test_pruning_keeps_sites_and_what_is_left_of_supernodes():
    graph = random_graph()
    latents = graph.of_kind("latent").tolist()
    pruned = prune(group(graph, {"all": latents[5:], "some": latents[:5]}), 0.5, 0.8)
    members = {label: {pruned.nodes[i] for i in nodes} for label, *nodes in pruned.metadata["supernodes"]}
    kept = set(pruned.nodes)
    assert 0 < len(members["all"]) < len(latents[5:])
    assert members["all"] == {graph.nodes[i] for i in latents[5:]} & kept
    assert members.get("some", set()) == {graph.nodes[i] for i in latents[:5]} & kept
    assert {node.site for node in pruned.nodes if node.is_feature} <= set(SITES)
    assert pruned.edges.target.dtype == torch.int32


def test_pinning_every_feature_changes_no_score():
    graph = random_graph()
    pinned, whole = scores(graph, graph.of_kind("latent").tolist()), scores(graph)
    assert pinned[:4] == pytest.approx(whole[:4])
    assert pinned.leaf_shares == pytest.approx(whole.leaf_shares)


@pytest.mark.parametrize("drop_errors", [False, True])
def test_unpinned_features_count_as_errors_of_their_place(drop_errors):
    """Against the definition on a dense matrix: columns moved with their signs, or with their sizes, rows emptied."""
    graph = random_graph()
    if drop_errors:
        keep = ~graph.is_kind("error")[graph.edges.source]
        graph = Graph(list(graph.nodes), Edges(*(c[keep] for c in graph.edges)), graph.row_values, {})
    latents = graph.of_kind("latent")
    pinned = latents[::3].tolist()
    error = {(node.layer, node.position): i for i, node in enumerate(graph.nodes) if node.kind == "error"}
    expected = {}
    for name in ("strict", "compatible"):
        matrix = dense(graph) if name == "compatible" else dense(graph).abs()
        for i in set(latents.tolist()) - set(pinned):
            matrix[:, error[graph.nodes[i].layer, graph.nodes[i].position]] += matrix[:, i]
            matrix[:, i], matrix[i] = 0, 0
        known = graph.is_kind("token", "error", "logit", "latent") | (name == "strict")
        matrix = matrix.abs() * known
        shares = matrix / matrix.sum(1, keepdim=True).clamp_min(1e-300)
        weights = target_weights(graph)
        reach = weights @ torch.linalg.inv(torch.eye(len(graph), dtype=torch.float64) - shares)
        token, errors = (float((reach - weights)[graph.is_kind(kind)].sum()) for kind in ("token", "error"))
        bias = float((reach - weights)[graph.is_kind("bias")].sum()) if name == "strict" else 0.0
        expected[name] = token / (token + errors + bias)
    found = scores(graph, pinned)
    assert found.replacement == pytest.approx(expected["strict"], rel=1e-10)
    assert found.replacement_compatible == pytest.approx(expected["compatible"], rel=1e-10)
    assert sum(found.leaf_shares.values()) == pytest.approx(1.0)


def test_pinning_more_never_lowers_strict_scores():
    graph = random_graph()
    latents = graph.of_kind("latent").tolist()
    found = [scores(graph, latents[:count]) for count in range(0, len(latents) + 1, 3)]
    for less, more in itertools.pairwise(found):
        assert less.replacement <= more.replacement + 1e-12
        assert less.replacement <= scores(graph).replacement + 1e-12


def test_pinning_refuses_what_is_no_feature():
    with pytest.raises(UserError, match="indices of features"):
        scores(random_graph(), [0])


# supernodes


def split(graph, node, copies, *, halve_rows):
    """`node` as equal copies beside each other that act as the one did: each writes its share of the decoder.

    With `halve_rows` the encoder is divided instead, so that the copies' rows are shares too.
    """
    number = [i if i <= node else i + copies - 1 for i in range(len(graph))]
    nodes = [one for i, one in enumerate(graph.nodes) for _ in range(copies if i == node else 1)]
    weights = {}
    pairs = zip(graph.edges.target.tolist(), graph.edges.source.tolist(), graph.edges.weight.tolist(), strict=True)
    for target, source, weight in pairs:
        for i in range(copies if node in (target, source) else 1):
            t, s = number[target] + i * (target == node), number[source] + i * (source == node)
            weights[t, s] = weight / copies if source == node or (target == node and halve_rows) else weight
    return build(nodes, weights, graph.metadata), list(range(node, node + copies))


def test_grouping_the_copies_of_a_feature_gives_back_the_graph():
    graph = random_graph()
    node = int(graph.of_kind("latent")[10])
    parts, copies = split(graph, node, 3, halve_rows=True)
    assert not torch.equal(arriving(parts)[: len(graph)], arriving(graph))
    whole = collapse(group(parts, {graph.nodes[node].label: copies}))
    renamed = [n._replace(index=graph.nodes[i].index) if i == node else n for i, n in enumerate(whole.nodes)]
    assert_same(Graph(renamed, whole.edges, whole.row_values, {}), graph)
    torch.testing.assert_close(arriving(whole), arriving(graph), rtol=1e-10, atol=1e-13)


def test_grouping_copies_with_divided_decoders_keeps_influence_and_all_other_rows():
    graph = random_graph()
    node = int(graph.of_kind("latent")[10])
    parts, copies = split(graph, node, 2, halve_rows=False)
    whole = collapse(group(parts, {"copies": copies}))
    torch.testing.assert_close(arriving(whole), arriving(graph), rtol=1e-10, atol=1e-13)
    others = torch.arange(len(graph)) != node
    torch.testing.assert_close(dense(whole)[others], dense(graph)[others])
    torch.testing.assert_close(dense(whole)[node], 2 * dense(graph)[node])


def test_collapsing_closes_even_where_members_feed_each_other():
    graph = random_graph(density=1.0)
    at = {(n.layer, n.position, n.index): i for i, n in enumerate(graph.nodes) if n.is_feature}
    # Members of neighbouring layers, of other layers with nothing between, and a pair of leaves.
    groups = {"a": [at[1, 0, 0], at[2, 0, 1]], "b": [at[3, 2, 0], at[3, 1, 0]], "words": [0, 1]}
    inside = float(dense(graph)[at[2, 0, 1], at[1, 0, 0]])
    small = collapse(group(graph, groups))
    assert inside != 0
    assert len(small) == len(graph) - 3
    assert small.residual < 1e-12
    assert in_causal_order(small)
    place = {label: nodes[0] for label, *nodes in small.metadata["supernodes"]}
    members = graph.row_values[groups["a"]].sum()
    assert float(small.row_values[place["a"]]) == pytest.approx(float(members) - inside)
    assert small.nodes[place["b"]].position == -1
    assert small.nodes[place["a"]].layer == 2
    expected = dense(graph)[groups["b"]][:, groups["a"]].sum()
    assert float(dense(small)[place["b"], place["a"]]) == pytest.approx(float(expected))
    assert float(arriving(small)[small.row_values.isnan()].sum()) == pytest.approx(1.0)


def test_a_supernode_around_another_node_is_refused_with_the_way_round():
    nodes = [Node("token", -1, 0, 1, 1.0, "t"), *(Node("latent", i, 0, i, 1.0, f"f{i}") for i in range(3))]
    nodes.append(Node("logit", 3, 0, 1, 1.0, "y", weight=1.0))
    graph = build(nodes, {(1, 0): 1.0, (2, 1): 1.0, (3, 2): 1.0, (4, 3): 1.0})
    with pytest.raises(UserError, match=r"cycle (f1 → outer → f1|outer → f1 → outer)"):
        collapse(group(graph, {"outer": [1, 3]}))
    assert len(collapse(group(graph, {"upper": [2, 3]}))) == 4


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"a": [999]}, "indices from 0"),
        ({"a": [21, 22], "b": [22]}, "a second time"),
        ({"a": [0, 21]}, "of one kind"),
        ({"a": []}, "got none"),
    ],
)
def test_groups_that_make_no_sense_are_refused(groups, message):
    with pytest.raises(UserError, match=message):
        group(random_graph(), groups)


def test_supernode_weights_by_hand():
    """T = {2, 3} gets 1 and 2 of its own, S = {0, 1} feeds it 3 - 1 and 2: ext/total are 1 and 1/2."""
    nodes = [Node("token", -1, 0, i, 1.0, f"t{i}") for i in range(2)]
    nodes += [Node("latent", 0, 0, 0, 1.0, "p"), Node("latent", 1, 0, 0, 1.0, "q")]
    graph = build(nodes, {(2, 0): 3.0, (2, 1): -1.0, (3, 1): 2.0, (3, 2): 2.0})
    graph = group(graph, {"S": [0, 1], "T": [2, 3]})
    found = supernode_weights(graph)
    assert (found.target.tolist(), found.source.tolist()) == ([1], [0])
    assert float(found.weight) == pytest.approx((1 / 1.5) * (2 / 4) + (0.5 / 1.5) * (2 / 2))
    assert [node.label for node in collapse(graph).nodes] == ["S", "T"]


def test_without_groups_the_viewers_arithmetic_is_the_normalised_row():
    graph = random_graph()
    found = supernode_weights(graph)
    expected = normalised(graph.edges, len(graph)) * graph.edges.weight.sign()
    torch.testing.assert_close(found.weight, expected)
    assert torch.equal(found.source, graph.edges.source)


def noisy_copies(seed=0, noise=0.05):
    """A random graph in which eight features each became two copies whose weights differ by a little noise."""
    graph = random_graph(seed)
    planted = []
    for node in reversed(graph.of_kind("latent").tolist()[::4]):
        graph, copies = split(graph, node, 2, halve_rows=True)
        planted = [[i + 1 for i in pair] for pair in planted] + [copies]
    weight = graph.edges.weight
    factor = 1 + noise * torch.randn(len(weight), dtype=weight.dtype, generator=torch.Generator().manual_seed(seed))
    return Graph(list(graph.nodes), graph.edges._replace(weight=weight * factor), graph.row_values, {}), planted


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_copies_are_found(seed):
    graph, planted = noisy_copies(seed)
    asked = supernodes(graph, len(graph.of_kind("latent")) - len(planted))
    assert sorted(list(one.nodes) for one in asked) == sorted(planted)
    chosen = [set(one.nodes) for one in supernodes(graph)]
    assert sum(any(set(pair) <= nodes for nodes in chosen) for pair in planted) == len(planted)


def test_quality_is_1_for_exact_copies_and_beats_random_groups_of_the_same_sizes():
    graph, planted = noisy_copies(noise=0.0)
    assert quality(graph, [Supernode(str(i), tuple(pair)) for i, pair in enumerate(planted)]) == pytest.approx(1.0)
    graph, _ = noisy_copies(1)
    found = supernodes(graph)
    latents = graph.of_kind("latent")
    for seed in range(20):
        shuffled = latents[torch.randperm(len(latents), generator=torch.Generator().manual_seed(seed))].tolist()
        ends = torch.tensor([len(one.nodes) for one in found]).cumsum(0).tolist()
        same = [
            Supernode(one.label, tuple(shuffled[e - len(one.nodes) : e])) for one, e in zip(found, ends, strict=True)
        ]
        assert quality(graph, same) < quality(graph, found) <= 1


def test_quality_is_the_ratio_of_multi_informations():
    """Against sum p log(p / (p(t) p(s) p(sign))) over a dense table of flows."""
    graph = random_graph(1)
    latents = graph.of_kind("latent").tolist()
    groups = [Supernode("a", tuple(latents[3:9])), Supernode("b", tuple(latents[20:22]))]
    matrix = dense(graph)
    share = matrix.abs() / matrix.abs().sum(1, keepdim=True).clamp_min(1e-300)
    flow = share * (arriving(graph) + target_weights(graph))[:, None]
    table = torch.stack([flow * (matrix > 0), flow * (matrix < 0)], 2) / flow.sum()

    def information(p):
        alone = [p.sum((1, 2))[:, None, None], p.sum((0, 2))[None, :, None], p.sum((0, 1))[None, None]]
        return float(torch.xlogy(p, p / (alone[0] * alone[1] * alone[2]).clamp_min(1e-300)).sum())

    member = torch.eye(len(graph), dtype=torch.float64)
    for one in groups:
        member[list(one.nodes)] = member[one.nodes[0]].clone()
    joined = torch.einsum("tsx,ta,sb->abx", table, member, member)
    assert quality(graph, groups) == pytest.approx(information(joined) / information(table), rel=1e-10)
    assert quality(group(graph, {"b": latents[20:22]})) == pytest.approx(quality(graph, groups[1:]))


@pytest.mark.parametrize("n", [50, 30, 20, 14])
def test_the_pair_of_largest_mean_similarity_is_joined_first(n):
    """Against average linkage written out, within layers, where no cycle can come about."""
    graph = random_graph(2, per_place=5)
    shares = dense(graph) / dense(graph).abs().sum(1, keepdim=True).clamp_min(1e-300)
    profiles = [torch.nn.functional.normalize(matrix, dim=1) for matrix in (shares, shares.T)]
    alike = sum(profile @ profile.T for profile in profiles) / 2
    groups = [[i] for i in graph.of_kind("latent").tolist()]
    while len(groups) > n:
        pairs = [
            (float(alike[a][:, b].mean()), a, b)
            for a, b in itertools.combinations(groups, 2)
            if graph.nodes[a[0]][1:3] == graph.nodes[b[0]][1:3]
        ]
        _, a, b = max(pairs)
        groups = [one for one in groups if one not in (a, b)] + [a + b]
    expected = sorted(sorted(one) for one in groups if len(one) > 1)
    assert sorted(sorted(one.nodes) for one in supernodes(graph, n, layers=0)) == expected


def test_joining_more_never_raises_quality():
    graph = random_graph()
    latents = graph.of_kind("latent").tolist()
    found = [quality(graph, [Supernode("x", tuple(latents[:count]))]) for count in range(1, len(latents) + 1)]
    assert found[0] == pytest.approx(1.0)
    assert all(more <= less + 1e-12 for less, more in itertools.pairwise(found))
    assert found[-1] > 0


@pytest.mark.parametrize("layers", [None, 0, 1])
def test_found_supernodes_can_be_collapsed_and_keep_the_rules(layers):
    graph = random_graph(3)
    for n in (1, 12, None):
        found = supernodes(graph, n, layers=layers)
        small = collapse(group(graph, found))
        assert small.residual < 1e-12
        assert in_causal_order(small)
        for one in found:
            members = [graph.nodes[i] for i in one.nodes]
            assert len({node.position for node in members}) == 1
            spread = max(node.layer for node in members) - min(node.layer for node in members)
            assert layers is None or spread <= layers
    assert len(supernodes(graph, 1, layers=0)) == LAYERS * TOKENS


# comparison


def test_merging_one_graph_changes_nothing():
    graph = random_graph()
    whole = merge([graph])
    assert list(whole.nodes) == list(graph.nodes)
    assert torch.equal(whole.edges.target, graph.edges.target)
    assert torch.equal(whole.edges.source, graph.edges.source)
    torch.testing.assert_close(whole.edges.weight, graph.edges.weight)
    torch.testing.assert_close(whole.row_values, graph.row_values, equal_nan=True)


@pytest.mark.parametrize("align", ["position", "end", "none"])
def test_merging_closes_and_does_not_depend_on_order(align):
    graphs = [random_graph(0), random_graph(1, tokens=2, index=1), random_graph(2, density=0.3)]
    whole, turned = merge(graphs, align=align), merge(graphs[::-1], align=align)
    assert list(whole.nodes) == list(turned.nodes)
    assert_same(whole, turned)
    assert whole.residual < 1e-12
    assert in_causal_order(whole)
    assert len(whole.of_kind("logit")) == 2
    assert float(target_weights(whole).sum()) == pytest.approx(1.0)
    total = sum(float(graph.edges.weight.sum()) for graph in graphs)
    assert float(whole.edges.weight.sum()) == pytest.approx(total / 3)


def test_the_mean_of_two_equal_graphs_is_the_graph_and_their_sum_is_twice_it():
    graph = random_graph()
    assert_same(merge([graph, graph]), graph)
    torch.testing.assert_close(merge([graph, graph], [1.0, 1.0]).row_values, 2 * graph.row_values, equal_nan=True)


def test_graphs_of_different_lengths_meet_at_the_end_or_by_a_given_mapping():
    long, short = random_graph(0), random_graph(1, tokens=2)
    by_end = merge([long, short], align="end")
    mapped = merge([long, short], align=[{0: 0, 1: 1, 2: 2}, {0: 1, 1: 2}])
    assert_same(by_end, mapped)
    last = [node for node in by_end.nodes if node.kind == "error" and node.position == 2]
    assert len(last) == LAYERS
    anywhere = merge([long, short], align="none")
    assert len(anywhere.of_kind("latent")) == LAYERS * PER_PLACE
    with pytest.raises(UserError, match="mapping for every position"):
        merge([long, short], align=[{0: 0, 1: 1, 2: 2}, {0: 1}])


def test_a_difference_closes_and_adds_up():
    a, b = random_graph(0), random_graph(1, density=0.5)
    change = difference(a, b)
    assert change.residual < 1e-12
    assert in_causal_order(change)
    again = merge([change, b], [1.0, 1.0])
    matrix = {pair: weight for pair, weight in contents(again)[1].items() if abs(weight) > 1e-12}
    assert matrix == pytest.approx(contents(a)[1])
    assert float(target_weights(change).sum()) == pytest.approx(1.0)


def test_a_graph_differs_from_itself_in_nothing():
    graph = random_graph()
    nothing = difference(graph, graph)
    assert len(nothing) == 0
    assert len(nothing.edges.weight) == 0


def test_consensus_holds_what_agrees_and_folds_the_rest():
    graphs = [random_graph(0), random_graph(0), random_graph(1), random_graph(2, index=1)]
    signs = {}
    for graph in graphs:
        for pair, weight in contents(graph)[1].items():
            signs.setdefault(pair, []).append(1 if weight > 0 else -1)
    for share in (0.5, 0.75, 1.0):
        whole = consensus(graphs, share)
        assert whole.residual < 1e-12
        assert in_causal_order(whole)
        agreed = {p for p, s in signs.items() if max(s.count(1), s.count(-1)) >= 4 * share}
        assert agreed
        assert {p for p in contents(whole)[1] if p[1][0] != "rest"} == agreed
    mean = merge(graphs)
    rows = {key: value for key, value in contents(mean)[0].items() if key in contents(whole)[0]}
    assert rows == pytest.approx({k: v for k, v in contents(whole)[0].items() if k[0] != "rest"}, nan_ok=True)


def test_consensus_of_one_is_the_graph():
    graph = random_graph()
    whole = consensus([graph])
    edges = {pair: weight for pair, weight in contents(whole)[1].items() if pair[1][0] != "rest"}
    assert edges == pytest.approx(contents(graph)[1])


def test_comparisons_carry_supernodes_and_refuse_nonsense():
    graph = random_graph()
    named = group(graph, {"pair": graph.of_kind("latent").tolist()[:2]})
    whole = merge([random_graph(1), named])
    (entry,) = whole.metadata["supernodes"]
    assert [whole.nodes[i].label for i in entry[1:]] == ["L0 latent 0", "L0 latent 1"]
    for call in (lambda: merge([]), lambda: merge([graph], [1.0, 2.0]), lambda: consensus([graph], 0.0)):
        with pytest.raises(UserError, match="expected"):
            call()
    with pytest.raises(UserError, match="align"):
        merge([graph], align="start")


# alternatives and ablation


def relu_chain(seed=0):
    """A residual stream of one token through three layers of ReLU latents: its graph, and a function that reruns it.

    The rerun holds latents at factors (other than 1) times what they were; with `active`, those latents stay active and no other.
    """
    generator = torch.Generator().manual_seed(seed)
    width, latents, layers = 8, 6, 3
    embed = [torch.randn(width, generator=generator, dtype=torch.float64) for _ in range(2)]
    W_enc, W_dec = torch.randn(2, layers, latents, width, generator=generator, dtype=torch.float64)
    b_enc = torch.randn(layers, latents, generator=generator, dtype=torch.float64)
    unembed = torch.randn(width, generator=generator, dtype=torch.float64)

    def run(factors, active=None):
        stream, pres = embed[0] + embed[1], []
        for layer in range(layers):
            pre = W_enc[layer] @ stream + b_enc[layer]
            a = pre.relu() if active is None else pre * active[layer]
            a = torch.where(factors[layer] == 1, a, factors[layer] * first[layer])
            stream = stream + a @ W_dec[layer]
            pres.append(pre)
        return torch.stack(pres), float(unembed @ stream)

    first = torch.zeros(layers, latents, dtype=torch.float64)
    pre, _ = run(torch.ones(layers, latents))
    active, first = pre > 0, pre.relu()
    alive = active.nonzero().tolist()
    nodes = [Node("token", -1, 0, i, 1.0, f"t{i}") for i in range(2)] + [Node("bias", 0, -1, -1, 0.0, "bias")]
    nodes += [Node("latent", layer, 0, j, float(pre[layer, j]), f"L{layer} latent {j}") for layer, j in alive]
    nodes.append(Node("logit", layers, 0, 0, 1.0, "y", weight=1.0))
    weights = {}
    for t, (layer, j) in enumerate([*alive, (layers, -1)], 3):
        reader = unembed if layer == layers else W_enc[layer, j]
        weights |= {(t, i): float(reader @ embed[i]) for i in range(2)}
        if layer < layers:
            weights[t, 2] = float(b_enc[layer, j])
        for s, (below, i) in enumerate(alive, 3):
            if below < layer:
                weights[t, s] = float(pre[below, i] * (reader @ W_dec[below, i]))
    return build(nodes, weights), run, active, alive


@pytest.mark.parametrize("factor", [0.0, 0.5, -1.0])
def test_ablation_is_predicted_exactly_while_the_active_latents_stay(factor):
    graph, run, active, alive = relu_chain()
    for chosen in ([0], [1, 4], [2, 3, len(alive) - 1]):
        factors = torch.ones(active.shape, dtype=torch.float64)
        for i in chosen:
            factors[tuple(alive[i])] = factor
        pre, logit = run(factors, active)
        expected = [float(pre[tuple(place)]) for place in alive] + [logit]
        found = ablated(graph, [3 + i for i in chosen], factor)
        assert found[3:].tolist() == pytest.approx(expected, rel=1e-10)
        assert found[:3].isnan().all()


def test_a_small_change_is_predicted_for_the_unfrozen_chain_too():
    graph, run, active, alive = relu_chain()
    factors = torch.ones(active.shape, dtype=torch.float64)
    factors[tuple(alive[0])] = 0.999
    assert float(ablated(graph, [3], 0.999)[-1]) == pytest.approx(run(factors)[1], rel=1e-12)


def test_ablating_one_feature_takes_its_total_attribution():
    """On a traced model, where every active neuron is a node: gated neurons by the half rule."""
    graph = trace(boot("llama"), prompt(4), max_features=10**6)
    weights = target_weights(graph)
    before = float(weights @ graph.row_values.double().nan_to_num(0))
    features = graph.of_kind("neuron")
    for node in features[:: len(features) // 6].tolist():
        after = float(weights @ ablated(graph, [node]).nan_to_num(0))
        assert before - after == pytest.approx(graph.nodes[node].attribution, rel=1e-9, abs=1e-9)


def two_routes():
    """A logit of 10 that a strong route brings 6 (through p, then q), a weak one 3 (through r), and a token 1."""
    nodes = [Node("token", -1, 0, 1, 1.0, "t")]
    nodes += [Node("latent", layer, 0, 0, 1.0, name) for layer, name in ((0, "p"), (0, "r"), (1, "q"))]
    nodes.append(Node("logit", 2, 0, 1, 10.0, "y", weight=1.0))
    return build(nodes, {(1, 0): 2.0, (2, 0): 5.0, (3, 1): 4.0, (4, 0): 1.0, (4, 2): 3.0, (4, 3): 6.0})


def test_alternatives_by_hand():
    strong, weak = alternatives(two_routes(), n=5)
    assert (strong.path.nodes, strong.features) == ((0, 1, 3, 4), (1, 3))
    assert (weak.path.nodes, weak.features) == ((0, 2, 4), (2,))
    assert (strong.share, weak.share) == pytest.approx((0.6, 0.3))
    assert (strong.alone, strong.remaining) == pytest.approx((0.4, 0.4))
    assert (weak.alone, weak.remaining) == pytest.approx((0.7, 0.1))
    assert "without all so far +0.100: 't'@0" in str(weak)


def test_alternatives_share_no_feature_and_weaken():
    graph = random_graph()
    found = alternatives(graph, n=6)
    assert len(found) == 6
    used = [i for one in found for i in one.features]
    assert len(used) == len(set(used))
    strengths = [one.path.strength for one in found]
    assert strengths == sorted(strengths, reverse=True)
    everything = [i for one in found for i in one.features]
    logit = graph.of_kind("logit")[0]
    assert found[-1].remaining == pytest.approx(float(ablated(graph, everything)[logit] / graph.row_values[logit]))


def test_ablation_refuses_indices_outside_the_graph():
    with pytest.raises(UserError, match="expected indices"):
        ablated(two_routes(), [17])


def test_coalescing_adds_repeats_and_orders():
    edges = coalesce(torch.tensor([3, 2, 3]), torch.tensor([1, 0, 1]), torch.tensor([1.0, 5.0, 2.5]), 4)
    assert [column.tolist() for column in edges] == [[2, 3], [0, 1], [5.0, 3.5]]


def test_simplified_graphs_survive_the_disk(tmp_path):
    a, b = random_graph(0), random_graph(1)
    found = [
        collapse(group(a, supernodes(a))),
        merge([a, b]),
        difference(a, b),
        difference(a, a),
        consensus([a, b], 0.5),
    ]
    for one in found:
        back = Graph.load(one.save(tmp_path / "x.graph"))
        assert back.nodes == one.nodes
        assert back.metadata == one.metadata
        assert torch.equal(back.edges.weight, one.edges.weight)
        assert back.residual == one.residual
