"""What a graph may explain: logits, differences, features, directions; and how gated neurons are targets."""

from functools import cache

import pytest
import torch
from toys import ARCHITECTURES, boot, clt, part, prompt
from unweave.circuits import Graph, trace
from unweave.circuits.targets import Direction, FeatureAt, Target, WhyNot, parsed
from unweave.circuits.tracing.frozen import capture
from unweave.saes.errors import UserError
from unweave.saes.sites import resolve_site

FIVE = ("gpt2", "neox", "llama", "gemma2", "opt")
SEQUENTIAL = [name for name in ARCHITECTURES if name not in ("neox", "phi")]
VECTOR = torch.randn(64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
IN, POST = "blocks.1.mlp.hook_in", "blocks.1.mlp.hook_post"
STREAM = ["hook_resid_pre", "hook_resid_post"]
BETWEEN = ["hook_resid_mid", "ln2.hook_in", "ln2.hook_out", "ln2.hook_normalized"]

model = cache(boot)


SITES = [f"blocks.1.{suffix}" for suffix in (*STREAM, *BETWEEN)] + [
    "blocks.2.hook_resid_pre",
    "blocks.2.hook_attn_out",
    IN,
]


@cache
def frozen(name):
    """The pass, with the activations at the sites that are read here."""
    mine = [site for site in SITES if name in SEQUENTIAL or site.split(".", 2)[2] not in BETWEEN]
    resolved = {site: resolve_site(model(name), site) for site in mine}
    seen = capture(model(name), prompt(), list(resolved.values()))
    return seen._replace(at={site: seen.at[resolved[site]] for site in mine})


def at(name, site):
    return frozen(name).at[site].reshape(6, 64)


def targets_of(graph):
    return [place for place, node in enumerate(graph.nodes) if node.kind in ("logit", "direction")]


def dense(graph, place):
    row = torch.zeros(len(graph), dtype=torch.float64)
    mine = graph.edges.target == place
    row[graph.edges.source[mine].long()] = graph.edges.weight[mine]
    return row


@pytest.mark.parametrize("name", FIVE)
def test_raw_logits_and_centred_ones_have_their_values(name):
    """The mean that centring takes away is one more row; raw minus centred is the same for all tokens, leaf by leaf."""
    logits = frozen(name).logits
    raw, centred = (
        trace(model(name), prompt(), targets=[5, 9], max_features=20, centred=flag) for flag in (False, True)
    )
    for graph, shift in ((raw, 0.0), (centred, float(logits.mean()))):
        assert graph.residual <= 1e-12
        assert [graph.nodes[i].value for i in targets_of(graph)] == pytest.approx((logits[[5, 9]] - shift).tolist())
    assert raw.metadata["settings"]["centred"] is False
    leaves = raw.is_kind("token", "position", "bias", "first")
    gaps = [
        dense(raw, i)[leaves] - dense(centred, j)[leaves]
        for i, j in zip(targets_of(raw), targets_of(centred), strict=True)
    ]
    torch.testing.assert_close(gaps[0], gaps[1], rtol=0, atol=1e-12)
    assert gaps[0].abs().sum() > 0.1


def test_a_difference_of_raw_logits_is_that_of_centred_ones():
    raw, centred = (
        trace(model("llama"), prompt(), targets=[(5, 9)], max_features=20, centred=flag) for flag in (False, True)
    )
    torch.testing.assert_close(dense(raw, len(raw) - 1), dense(centred, len(centred) - 1), rtol=0, atol=1e-12)


def test_why_not_is_the_likeliest_token_minus_the_one_asked_for():
    logits = frozen("llama").logits
    first, second = logits.topk(2).indices.tolist()
    graph = trace(model("llama"), prompt(), targets=[WhyNot(9), WhyNot("w9"), WhyNot(first)], max_features=20)
    nodes = [graph.nodes[i] for i in targets_of(graph)]
    assert [target["ids"] for target in graph.metadata["targets"]] == [[first, 9], [first, 9], [second, first]]
    expected = [logits[first] - logits[9]] * 2 + [logits[second] - logits[first]]
    assert [node.value for node in nodes] == pytest.approx([float(value) for value in expected])
    assert nodes[0].label == f"w{first} − w9"
    assert graph.residual <= 1e-12


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_directions_read_the_stream_and_the_mlp_input(name):
    sites = [f"blocks.1.{suffix}" for suffix in [*STREAM, "mlp.hook_in", *(BETWEEN if name in SEQUENTIAL else [])]]
    wishes = [Direction(VECTOR, site, position, 0.7, "probe") for site in sites for position in (2, -1)]
    graph = trace(model(name), prompt(), targets=wishes, max_features=20)
    assert graph.residual <= 1e-12
    nodes = [graph.nodes[i] for i in targets_of(graph)]
    assert [node.position for node in nodes] == [2, 5] * len(sites)
    assert {(node.kind, node.label, node.layer) for node in nodes} == {("direction", "probe", 1)}
    assert sum(node.weight for node in nodes) == pytest.approx(1.0)
    expected = [float(at(name, wish.site)[wish.position] @ VECTOR) + 0.7 for wish in wishes]
    assert [node.value for node in nodes] == pytest.approx(expected, rel=1e-10)


def test_a_direction_is_explained_by_what_comes_before_it():
    graph = trace(
        model("gpt2"), prompt(), targets=[Direction(VECTOR, "blocks.1.hook_resid_mid", 3)], max_features=10_000
    )
    (target,) = targets_of(graph)
    sources = [graph.nodes[source] for source in dense(graph, target).nonzero()[:, 0].tolist()]
    assert {node.layer for node in sources if node.kind == "neuron"} == {0}
    assert all(node.layer <= 1 and node.position <= 3 for node in sources)


def test_the_bias_of_a_direction_is_a_bias_leaf():
    rows = []
    for bias in (0.0, 2.5):
        graph = trace(
            model("gpt2"), prompt(), targets=[Direction(VECTOR, "blocks.1.hook_resid_pre", bias=bias)], max_features=20
        )
        rows.append(dense(graph, len(graph) - 1))
        assert graph.residual <= 1e-12
    change = rows[1] - rows[0]
    (moved,) = (change.abs() > 1e-12).nonzero()[:, 0].tolist()
    assert graph.nodes[moved].kind == "bias" and float(change[moved]) == pytest.approx(2.5)


@pytest.mark.parametrize("name", FIVE)
def test_a_neuron_is_a_target_whether_it_is_among_the_nodes_or_not(name):
    block = capture(model(name), prompt()).blocks[1]
    value = block.seen["post" if "pre_linear" in block.seen else "pre"]
    graph = trace(model(name), prompt(), targets=[FeatureAt(POST, 3), FeatureAt(POST, 7, 0)], max_features=20)
    assert graph.residual <= 1e-12
    nodes = [graph.nodes[i] for i in targets_of(graph)]
    assert [(node.kind, node.site, node.index, node.position) for node in nodes] == [
        ("direction", POST, 3, 5),
        ("direction", POST, 7, 0),
    ]
    assert [node.value for node in nodes] == pytest.approx([float(value[5, 3]), float(value[0, 7])], rel=1e-9)


@pytest.mark.parametrize("name", FIVE)
def test_latents_are_targets_active_or_not_at_normed_and_stream_sites(name):
    """The target is the pre-activation; that of an inactive latent is what kept it down."""
    sites = (IN, "blocks.2.hook_resid_pre", "blocks.2.hook_attn_out")
    given = [part(IN, "blocks.1.mlp.hook_out"), *(part(site, seed=4) for site in sites[1:])]
    wishes, expected = [], []
    for each in given:
        x = at(name, each.read)
        active = each.encode(x).indices[4].tolist()
        for index in (active[0], next(i for i in range(60) if i not in active)):
            wishes.append(FeatureAt(each.read, index, -2))
            expected.append(float(each.W_enc[index] @ x[4] + each.b_enc[index]))
    graph = trace(model(name), prompt(), given, wishes, max_features=20)
    assert graph.residual <= 1e-12
    nodes = [graph.nodes[i] for i in targets_of(graph)]
    assert [node.value for node in nodes] == pytest.approx(expected, rel=1e-10)
    assert [(node.position, node.index) for node in nodes] == [(4, wish.index) for wish in wishes]
    assert all(nodes[2 * i].value > 0 for i in range(3))


def test_the_row_of_an_active_latent_is_the_row_it_has_as_a_node():
    given = [part(IN, "blocks.1.mlp.hook_out"), *clt()[:1]]
    active = given[0].encode(at("llama", IN)).indices[5].tolist()
    graph = trace(model("llama"), prompt(), given, ["w5", FeatureAt(IN, active[0])], max_features=10_000)
    place = next(
        i for i, n in enumerate(graph.nodes) if (n.kind, n.site, n.position, n.index) == ("latent", IN, 5, active[0])
    )
    torch.testing.assert_close(dense(graph, place), dense(graph, len(graph) - 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "select"), [*((name, "attribution") for name in FIVE), ("llama", "influence"), ("gemma2", "influence")]
)
def test_mixed_targets_close_and_conserve(name, select):
    wishes = [
        "w5",
        ("w6", 9),
        WhyNot("w7"),
        FeatureAt(POST, 3, 2),
        Direction(VECTOR, "blocks.2.hook_resid_pre", bias=0.3),
    ]
    graph = trace(model(name), prompt(), targets=wishes, max_features=60, select=select)
    nodes = [graph.nodes[i] for i in targets_of(graph)]
    assert [node.kind for node in nodes] == ["logit"] * 3 + ["direction"] * 2
    assert [node.weight for node in nodes] == [0.2] * 5
    assert graph.residual <= 1e-12
    leaves = graph.is_kind("token", "position", "bias", "first")
    total = sum(node.weight * node.value for node in nodes)
    assert float(graph.column("attribution")[leaves].sum()) == pytest.approx(total, abs=1e-10)


def test_targets_round_trip_through_a_file(tmp_path):
    wishes = [("w5", 9), FeatureAt(POST, 3, -2), Direction(VECTOR, "blocks.2.hook_resid_pre", -1, 0.25, "probe")]
    graph = trace(model("llama"), prompt(), targets=wishes, max_features=20)
    back = Graph.load(graph.save(tmp_path / "x.graph"))
    assert back.nodes == graph.nodes and back.metadata == graph.metadata
    pair, feature, direction = back.metadata["targets"]
    assert pair["ids"] == [5, 9] and pair["label"] == "w5 − w9"
    assert FeatureAt(*feature["feature"]) == FeatureAt(POST, 3, 4)
    again = Direction(**direction["direction"])
    assert again._replace(vector=0) == wishes[2]._replace(vector=0, position=5)
    assert again.vector == VECTOR.tolist()
    once_more = trace(
        model("llama"), prompt(), targets=[("w5", 9), FeatureAt(*feature["feature"]), again], max_features=20
    )
    assert once_more.nodes == graph.nodes and torch.equal(once_more.edges.weight, graph.edges.weight)


def test_to_dict_keeps_plain_targets_plain():
    assert Target((5,), "w5", 1.0, 0.25).to_dict() == {"ids": [5], "label": "w5", "weight": 1.0, "probability": 0.25}


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("w5", "w5"),
        (" Paris|| London", (" Paris", " London")),
        ("||", "||"),
        ("a||", "a||"),
        ("why-not: London", WhyNot(" London")),
        (f"feature:{IN}:17", FeatureAt(IN, 17)),
        (f"feature:{IN}:17:-2", FeatureAt(IN, 17, -2)),
        (7, 7),
        (("a", "b"), ("a", "b")),
    ],
)
def test_spellings_of_the_command_line(text, meaning):
    assert parsed(text) == meaning and type(parsed(text)) is type(meaning)


def test_spelled_targets_are_the_targets():
    spelled = trace(model("llama"), prompt(), targets=["w5||w9", "why-not:w6", f"feature:{POST}:3:-2"], max_features=20)
    given = trace(
        model("llama"), prompt(), targets=[("w5", "w9"), WhyNot("w6"), FeatureAt(POST, 3, -2)], max_features=20
    )
    assert spelled.nodes == given.nodes and torch.equal(spelled.edges.weight, given.edges.weight)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (f"feature:{IN}", "expected feature:SITE:INDEX"),
        (f"feature:{IN}:x", "expected feature:SITE:INDEX"),
        (f"feature:{IN}:1:2:3", "expected feature:SITE:INDEX"),
        (FeatureAt(POST, 96), r"got 96 of blocks\.1\.mlp\.hook_post, which has 96"),
        (FeatureAt(POST, -1), r"got -1 of"),
        (FeatureAt("blocks.1.hook_resid_pre", 3), "pass its dictionary too"),
        (FeatureAt(POST, 3, 6), "expected a position from -6 to 5; got 6"),
        (FeatureAt(POST, 3, -7), "expected a position from -6 to 5; got -7"),
        (FeatureAt("blocks.9.hook_resid_pre", 3), "expected a site"),
        (Direction(VECTOR, "blocks.1.hook_resid_pre", 6), "expected a position"),
        (Direction(VECTOR[:5], "blocks.1.hook_resid_pre"), r"a direction \[64\].*got \[5\]"),
        (Direction(VECTOR, "blocks.1.hook_attn_out"), "of the residual stream or an MLP's input"),
        (Direction(VECTOR, "blocks.1.attn.hook_q"), "can be traced"),
        (WhyNot("nonsense"), "one token"),
        (WhyNot(100), "token id from 0 to 99"),
        (3.5, "token string or id"),
        ((5,) * 3, "pair of tokens"),
    ],
)
def test_targets_that_cannot_be_explained(target, message):
    with pytest.raises(UserError, match=message):
        trace(model("llama"), prompt(), targets=[target], max_features=20)


def test_a_neuron_of_a_transcoded_mlp_is_no_target():
    with pytest.raises(UserError, match="expected a feature of a traced dictionary or MLP"):
        trace(model("llama"), prompt(), [part(IN, "blocks.1.mlp.hook_out")], [FeatureAt(POST, 3)])


def rows_of(graph, kind):
    """(layer, position, index) -> value and dense row of all nodes of a kind."""
    return {
        (node.layer, node.position, node.index): (float(graph.row_values[place]), dense(graph, place))
        for place, node in enumerate(graph.nodes)
        if node.kind == kind
    }


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("select", ["attribution", "influence"])
def test_rows_split_a_gated_neuron_in_gate_and_up(name, select):
    """Gate and up rows sum to the pre-activations, the neuron's own row is half of each, and half of each is the half rule's row."""
    options = dict(select=select, targets=[5], max_features=60)
    split = trace(model(name), prompt(), neurons="rows", **options)
    half = trace(model(name), prompt(), neurons="half", **(options | {"select": "attribution", "max_features": 200}))
    seen = [block.seen for block in capture(model(name), prompt()).blocks]
    assert split.residual <= 1e-12
    neurons, gates, ups = (rows_of(split, kind) for kind in ("neuron", "gate", "up"))
    assert 0 < len(neurons) <= 60 and neurons.keys() == gates.keys() == ups.keys()
    place = {(n.kind, n.layer, n.position, n.index): i for i, n in enumerate(split.nodes)}
    leaves = split.is_kind("token", "bias", "first")
    halves, compared = rows_of(half, "neuron"), 0
    for (layer, position, index), (value, row) in neurons.items():
        key = (layer, position, index)
        g, u, a = (float(seen[layer][name][position, index]) for name in ("pre", "pre_linear", "post"))
        assert (gates[key][0], ups[key][0], value) == pytest.approx((g, u, a), rel=1e-9)
        assert [split.nodes[place[kind, *key]].value for kind in ("gate", "up")] == pytest.approx([g, u], rel=1e-9)
        assert {split.nodes[i].kind: float(row[i]) for i in row.nonzero()[:, 0].tolist()} == {
            "gate": a / 2,
            "up": a / 2,
        }
        if key not in halves:
            continue
        compared += 1
        whole = a / 2 / g * gates[key][1] + a / 2 / u * ups[key][1]
        expected = halves[key][1][half.is_kind("token", "bias", "first")]
        torch.testing.assert_close(whole[leaves], expected, rtol=1e-9, atol=1e-12)
    assert compared > 20


def test_the_gate_rule_holds_the_gate():
    """A row read through the up projection alone: a / u times the row of u, which sums to a."""
    split = trace(model("llama"), prompt(), neurons="rows", targets=[5], max_features=200)
    gate = trace(model("llama"), prompt(), neurons="gate", targets=[5], max_features=200)
    assert gate.residual <= 1e-12
    ups, leaves = rows_of(split, "up"), split.is_kind("token", "bias", "first")
    mine = gate.is_kind("token", "bias", "first")
    rows = {key: pair for key, pair in rows_of(gate, "neuron").items() if key in ups}
    assert len(rows) > 50
    for key, (value, row) in rows.items():
        up_value, up_row = ups[key]
        assert value == pytest.approx(float(row.sum()), abs=1e-12)
        torch.testing.assert_close(row[mine], value / up_value * up_row[leaves], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3", "gpt2"])
@pytest.mark.parametrize("neurons", ["half", "gate", "rows"])
def test_total_attribution_is_conserved_whatever_the_rule(name, neurons):
    graph = trace(model(name), prompt(), targets=[5, ("w6", 9)], neurons=neurons, max_features=30)
    leaves = graph.is_kind("token", "position", "bias", "first")
    total = sum(node.weight * node.value for node in graph.nodes if node.kind == "logit")
    assert float(graph.column("attribution")[leaves].sum()) == pytest.approx(total, abs=1e-10)
    assert graph.residual <= 1e-12


@pytest.mark.parametrize("name", ["gpt2", "neox", "phi", "opt"])
@pytest.mark.parametrize("neurons", ["rows", "gate"])
def test_plain_neurons_have_one_factor(name, neurons):
    half, other = (trace(model(name), prompt(), neurons=rule, max_features=40) for rule in ("half", neurons))
    assert other.nodes == half.nodes
    assert all(torch.equal(a, b) for a, b in zip(other.edges, half.edges, strict=True))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_without_neurons_an_mlp_is_an_error_leaf(name):
    graph = trace(model(name), prompt(), [part(IN, "blocks.1.mlp.hook_out")], neurons="none")
    seen = [block.seen["mlp_out"] for block in capture(model(name), prompt()).blocks]
    assert graph.residual <= 1e-12
    assert {node.kind for node in graph.nodes} >= {"error", "latent"} and not len(graph.of_kind("neuron"))
    for node in graph.nodes:
        if node.kind == "error" and node.layer != 1:
            expected = 0.0 if node.position == 0 else float(seen[node.layer][node.position].norm())
            assert node.value == pytest.approx(expected)
