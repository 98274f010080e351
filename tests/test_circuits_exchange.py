"""Graphs as Neuronpedia's JSON, both ways and of other tools; circuit-tracer's transcoder folders, both ways."""

import copy
import gzip
import json
import math
import random
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import boot, prompt, transcoder
from unweave.circuits import Graph, trace
from unweave.circuits.exchange.files import open_graph, write_graph_json
from unweave.circuits.exchange.neuronpedia import cantor, node_records, uncantor
from unweave.circuits.exchange.transcoders import load_transcoders, open_dictionaries
from unweave.circuits.exchange.transcoders_write import save_transcoders
from unweave.circuits.graph import Edges, Node
from unweave.circuits.parts import Part, Rule, parts
from unweave.saes.errors import UserError
from unweave.saes.keep import KeepRule
from unweave.viz.convert import convert

SCHEMA = json.loads((Path(__file__).parent / "neuronpedia_graph.schema.json").read_text())


def through_text(document):
    """The document after it was a file."""
    return json.loads(json.dumps(document, allow_nan=False))


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def traced(request):
    dtype = torch.float64 if request.param == "llama" else torch.float32
    model = boot(request.param, dtype=dtype)
    return trace(model, prompt(5), [transcoder(1, dtype=dtype)], max_features=120)


def assert_same_graph(ours, other):
    assert other.nodes == ours.nodes
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(other.edges, ours.edges, strict=True))
    torch.testing.assert_close(other.row_values, ours.row_values, rtol=0, atol=0, equal_nan=True)
    assert other.metadata == through_text(ours.metadata)


def test_our_graph_comes_back_exactly_and_fits_the_schema(traced):
    document = through_text(traced.to_neuronpedia())
    jsonschema.validate(document, SCHEMA)
    again = Graph.from_neuronpedia(document)
    assert_same_graph(traced, again)
    assert again.to_neuronpedia() == document
    assert again.residual == traced.residual and again.scores() == traced.scores()


def test_a_pruned_graph_and_one_with_options_come_back_too(traced):
    pruned = traced.prune()
    document = through_text(pruned.to_neuronpedia())
    jsonschema.validate(document, SCHEMA)
    assert_same_graph(pruned, Graph.from_neuronpedia(document))
    assert document["metadata"]["pruning_settings"] == {"node_threshold": 0.8, "edge_threshold": 0.98}
    named = through_text(
        pruned.to_neuronpedia(slug="mine", scan="set", feature_details={"neuronpedia_source_set": "x"})
    )
    assert named["metadata"]["slug"] == "mine" and named["metadata"]["scan"] == "set"
    assert Graph.from_neuronpedia(named).to_neuronpedia() == named


def test_others_find_tokens_errors_latents_and_targets_where_they_expect_them(traced):
    document = traced.to_neuronpedia()
    by_kind = {node["unweave"]["kind"]: node for node in document["nodes"]}
    last = max(node.layer for node in traced.nodes)
    latent, error, token, logit = (by_kind[kind] for kind in ("latent", "error", "token", "logit"))
    fields = latent["unweave"]
    assert latent["node_id"] == f"1_{fields['index']}_{fields['position']}"
    assert latent["feature"] == cantor(1, fields["index"]) and latent["feature_type"] == "cross layer transcoder"
    assert error["node_id"] == f"1_-1_{error['ctx_idx']}" and error["feature_type"] == "mlp reconstruction error"
    assert token["layer"] == "E" and token["node_id"] == f"E_{token['unweave']['index']}_{token['ctx_idx']}"
    assert logit["layer"] == str(last + 1) and logit["jsNodeId"] == f"L_{logit['feature']}-4"
    assert logit["clerp"] == f'Output "{logit["unweave"]["label"]}" (p={logit["token_prob"]:.3f})'
    assert sum(node["is_target_logit"] for node in document["nodes"]) == 1
    assert len({node["node_id"] for node in document["nodes"]}) == len(traced)
    assert any("ledger" in what for what in document["unweave"]["lost"])


def test_influence_is_cumulative_at_the_rank_by_hand():
    """Latent 1 gets 3/4 of the target, token 0 what goes through it: influence .75, .75 + ..., in order of size."""
    nodes = [Node("token", -1, i, i, 1.0, "t") for i in range(2)]
    nodes += [Node("latent", 0, 1, 5, 2.0, "f"), Node("logit", 1, 1, 7, 1.0, "x", weight=1.0)]
    edges = Edges(torch.tensor([2, 3, 3]), torch.tensor([0, 1, 2]), torch.tensor([2.0, -1.0, 3.0]))
    graph = Graph(nodes, edges, torch.tensor([math.nan, math.nan, 2.0, 2.0]), {})
    # Influences: token 0 .75, token 1 .25, latent .75; of their sum 1.75 the first two carry 3/7 and 6/7.
    ranks = [record["influence"] for record in node_records(graph)]
    assert ranks == pytest.approx([3 / 7, 1.0, 6 / 7, None])


@pytest.mark.parametrize("layer, index", [(0, 0), (25, 16383), (3, 2**31), (61, 10**17), (10**9, 10**12 + 7)])
def test_cantor_is_inverted_exactly_at_any_size(layer, index):
    assert uncantor(cantor(layer, index)) == (layer, index)


def foreign(seed):
    """A random valid document as another tool might write it: any order, old and new ids, repeated links, unknown keys."""
    rng = random.Random(seed)
    tokens = [rng.choice(["<s>", " a", "\n", "<b>", "\ud83d", "é"]) for _ in range(4)]
    nodes = [_foreign_node(f"E_{9 + i}_{i}", i, "E", i, "embedding", i) for i in range(4)]
    for layer in range(3):
        for feature in rng.sample(range(40), 3) + [1]:
            kind = rng.choice(["cross layer transcoder", "lorsa", "something new"])
            where = rng.choice([str(layer), layer])
            known = rng.choice([cantor(layer, feature), None, 100_000 * layer + feature])
            nodes.append(_foreign_node(f"{layer}_{feature}_2", known, where, 2.0, kind, len(nodes)))
        old = rng.random() < 0.5
        name, index = (f"0_{layer}_2", -1) if old else (f"{layer}_-1_2", None)
        nodes.append(
            _foreign_node(name, index, str(layer), 2, rng.choice(["mlp reconstruction error", "lorsa error"]), 5)
        )
    nodes += [_foreign_node(f"4_{v}_3", v, "4", 3, "logit", v) for v in (5, 6)]
    for node in nodes:
        node |= {key: value for key, value in _extras(rng).items() if rng.random() < 0.5}
    leaves = ("embedding", "mlp reconstruction error", "lorsa error")
    depth = {"E": -1} | {str(i): i for i in range(5)}
    pairs = [
        (s["node_id"], t["node_id"])
        for t in nodes
        for s in nodes
        if t["feature_type"] not in leaves and depth[str(s["layer"])] < depth[str(t["layer"])] and rng.random() < 0.6
    ]
    # An old error id is also a latent's of layer 0: no link may read as one from a layer to a lower one.
    pairs = [(s, t) for s, t in pairs if not t.startswith("0_") or s.startswith("E")]
    pairs += rng.sample(pairs, 4)
    rng.shuffle(pairs), rng.shuffle(nodes)
    links = [{"source": s, "target": t, "weight": rng.choice([rng.gauss(0, 1), 3, -0.0, 1e-300])} for s, t in pairs]
    links[0] |= {"note": {"deep": [1, {"x": None}]}}
    ids = [node["node_id"] for node in nodes]
    state = {
        "pinnedIds": ids[:3],
        "supernodes": [["group", ids[0], "absent"], ["empty"], "junk"],
        "linkType": "both",
        "z": 1,
    }
    about = {"slug": "s", "scan": "m", "prompt_tokens": tokens, "prompt": "p", "schema_version": 1, "more": [True, 2.5]}
    aside = {"9_9_9": _foreign_node("9_9_9", 3, "9", 1, "lorsa", 0)}
    return {
        "metadata": about,
        "qParams": state,
        "nodes": nodes,
        "links": links,
        "qk_only_nodes": aside,
        "other": {"a": 1},
    }


def _foreign_node(node_id, feature, layer, position, kind, number):
    clerp = f'Output "x" (p=0.{number + 1})' if kind == "logit" else ""
    return {
        "node_id": node_id,
        "feature": feature,
        "layer": layer,
        "ctx_idx": position,
        "feature_type": kind,
        "clerp": clerp,
    } | {"jsNodeId": f"{node_id}-0"}


def _extras(rng):
    marginal = {f"top_{side}_marginal_contributors": [["9_9_9", 0.5]] for side in "qk"}
    results = {"pair_wise_contributors": [["9_9_9", "9_9_9", 0.1]], **marginal}
    return {
        "activation": rng.choice([None, 2, 2.5]),
        "influence": rng.random(),
        "token_prob": rng.choice([0, 0.25]),
        "qk_tracing_results": results,
        "mine": {"unweave": [1, "ü", None]},
    }


@pytest.mark.parametrize("seed", range(20))
def test_a_foreign_document_comes_back_identical(seed, tmp_path):
    document = foreign(seed)
    jsonschema.validate(document, SCHEMA)
    before = copy.deepcopy(document)
    graph = Graph.from_neuronpedia(document)
    assert graph.to_neuronpedia() == before
    assert json.dumps(graph.to_neuronpedia()["links"]) == json.dumps(before["links"])
    graph.save(tmp_path / "x.graph")
    assert Graph.load(tmp_path / "x.graph").to_neuronpedia() == before
    assert bool((graph.edges.source < graph.edges.target).all()) and graph.row_values.isnan().all()
    pairs = list(zip(graph.edges.target.tolist(), graph.edges.source.tolist(), strict=True))
    assert pairs == sorted(set(pairs)), "edges are in order and distinct"
    total = sum(link["weight"] for link in before["links"])
    assert float(graph.edges.weight.sum()) == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_pruning_a_foreign_graph_leaves_what_stays_as_it_was(seed):
    document = foreign(seed)
    graph = Graph.from_neuronpedia(document)
    pruned = graph.prune(nodes=0.5, edges=0.8)
    out = through_text(pruned.to_neuronpedia())
    jsonschema.validate(out, SCHEMA)
    left = [node for node in out["nodes"] if "unweave" not in node]
    assert len(out["nodes"]) == len(pruned) and 0 < len(left) < len(graph)
    order = [document["nodes"].index(node) for node in left]
    assert order == sorted(order), "what stays is unchanged and in its order"
    ids = {node["node_id"] for node in out["nodes"]}
    assert {end for link in out["links"] for end in (link["source"], link["target"])} <= ids
    assert set(out["qParams"]["pinnedIds"]) <= ids
    again = Graph.from_neuronpedia(out)
    assert len(again) == len(pruned)
    assert sorted(again.edges.weight.tolist()) == sorted(pruned.edges.weight.tolist())


def test_groups_labels_and_values_that_change_are_written():
    document = foreign(3)
    graph = Graph.from_neuronpedia(document)
    features = [i for i, node in enumerate(graph.nodes) if node.kind == "latent"][:2]
    nodes = list(graph.nodes)
    nodes[features[0]] = nodes[features[0]]._replace(label="Paris", value=7.0)
    metadata = graph.metadata | {"supernodes": [["capital", *features]]}
    out = Graph(nodes, graph.edges, graph.row_values, metadata).to_neuronpedia()
    changed = [(a, b) for a, b in zip(document["nodes"], out["nodes"], strict=True) if a != b]
    assert len(changed) == 1 and changed[0][1] == changed[0][0] | {"clerp": "Paris", "activation": 7.0}
    label, *members = out["qParams"]["supernodes"][0]
    assert label == "capital" and changed[0][1]["node_id"] == members[0] and len(members) == 2
    assert out["links"] == document["links"]


def test_labels_and_groups_given_in_a_viewer_arrive(traced):
    document = through_text(traced.to_neuronpedia())
    place = next(i for i, node in enumerate(traced.nodes) if node.kind == "latent")
    document["nodes"][place]["clerp"] = "says <script>"
    document["qParams"] |= {
        "supernodes": [["two", *(document["nodes"][i]["node_id"] for i in (place, 0))]],
        "sg_pos": "1",
    }
    graph = Graph.from_neuronpedia(document)
    assert graph.nodes[place].label == "says <script>" and graph.metadata["supernodes"] == [["two", place, 0]]
    assert without_ours(graph.to_neuronpedia()) == without_ours(document)


def without_ours(document):
    """What others see of a document."""
    nodes = [{key: value for key, value in node.items() if key != "unweave"} for node in document["nodes"]]
    return {key: value for key, value in document.items() if key != "unweave"} | {"nodes": nodes}


def change(path, value):
    """A function that sets one place of a document; `...` removes it."""

    def apply(document):
        *way, last = path
        for step in way:
            document = document[step]
        if value is ...:
            del document[last]
        else:
            document[last] = value

    return apply


def nested(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


HOSTILE = {
    "nodes": change(["nodes"], {}),
    "qParams": change(["qParams"], ...),
    "metadata.prompt_tokens": change(["metadata", "prompt_tokens"], [1]),
    "nodes[2].node_id": change(["nodes", 2, "node_id"], 5),
    "nodes[1].feature": change(["nodes", 1, "feature"], ...),
    "nodes[0].ctx_idx": change(["nodes", 0, "ctx_idx"], 10**30),
    "nodes[3].layer": change(["nodes", 3, "layer"], True),
    "nodes[4].activation": change(["nodes", 4, "activation"], "much"),
    "nodes[5]": change(["nodes", 5], None),
    "links[1].source": change(["links", 1, "source"], "nobody"),
    "links[2].target": change(["links", 2], {"source": "E_9_0", "weight": 1.0}),
    "links[3].weight": change(["links", 3, "weight"], math.nan),
    "links[4].weight": change(["links", 4, "weight"], 10**400),
    "nodes[6].mine": change(["nodes", 6, "mine"], math.inf),
    "other.deep": change(["other", "deep"], nested(5000)),
    "other.odd": change(["other", "odd"], {1: 2}),
    "other.big": change(["other", "big"], 10**5000),
    "qParams.supernodes": change(["qParams", "supernodes"], "all"),
    "nodes[7].unweave.kind": change(["nodes", 7, "unweave"], {"kind": "spy"}),
    "nodes[7].unweave.layer": change(["nodes", 7, "unweave"], {"kind": "latent", "layer": "3"}),
    "unweave.dtypes": change(["unweave"], {"schema": 1, "metadata": {}, "dtypes": {"weight": "__class__"}}),
}


@pytest.mark.parametrize("place", HOSTILE)
def test_a_malformed_document_is_refused_with_the_place(place):
    document = foreign(1)
    HOSTILE[place](document)
    with pytest.raises(UserError) as caught:
        Graph.from_neuronpedia(document)
    assert place in str(caught.value)


@pytest.mark.parametrize("seed", range(40))
def test_random_damage_raises_a_user_error_or_nothing(seed):
    rng, document = random.Random(seed), foreign(seed)
    for _ in range(3):
        branch = document
        while isinstance(branch, dict | list) and branch:
            key = rng.choice(list(branch)) if isinstance(branch, dict) else rng.randrange(len(branch))
            if not isinstance(branch[key], dict | list) or rng.random() < 0.3:
                branch[key] = rng.choice([None, -1, 2**70, 0.5, "", "E", [], {}, True, math.nan, ["x"]])
                break
            branch = branch[key]
    try:
        graph = Graph.from_neuronpedia(document)
    except UserError:
        return
    assert graph.to_neuronpedia() == document


def test_links_to_an_id_that_a_latent_and_an_error_share_reach_both():
    """The old id of the error of layer 3 is latent 3 of layer 0: links end at the latent, come from it, and when repeated from both."""
    document = foreign(0)
    nodes = [("0_3_2", cantor(0, 3), "0", "cross layer transcoder"), ("0_3_2", -1, "3", "mlp reconstruction error")]
    nodes += [("E_1_2", 2, "E", "embedding"), ("4_7_3", 7, "4", "logit")]
    document["nodes"] = [_foreign_node(name, number, layer, 2, kind, 0) for name, number, layer, kind in nodes]
    ends = [("E_1_2", "0_3_2", 1.5), ("0_3_2", "4_7_3", 2.5), ("0_3_2", "4_7_3", 3.5)]
    document["links"] = [{"source": s, "target": t, "weight": weight} for s, t, weight in ends]
    graph = Graph.from_neuronpedia(document)
    kinds = [node.kind for node in graph.nodes]
    columns = zip(*(column.tolist() for column in graph.edges), strict=True)
    found = {(kinds[s], kinds[t], weight) for t, s, weight in columns}
    assert found == {("token", "latent", 1.5), ("latent", "logit", 2.5), ("error", "logit", 3.5)}
    assert graph.to_neuronpedia() == document


def test_a_cycle_is_refused():
    document = foreign(0)
    ids = [node["node_id"] for node in document["nodes"] if node["feature_type"] == "logit"]
    document["links"] += [{"source": a, "target": b, "weight": 1.0} for a, b in (ids, ids[::-1])]
    with pytest.raises(UserError, match="cycle"):
        Graph.from_neuronpedia(document)


def test_a_damaged_memory_of_the_document_is_refused():
    graph = Graph.from_neuronpedia(foreign(0))
    for damage in ({}, {"records": [1]}, None, graph.metadata["neuronpedia"] | {"order": [99]}):
        with pytest.raises(UserError, match="damaged"):
            Graph(list(graph.nodes), graph.edges, graph.row_values, {"neuronpedia": damage}).to_neuronpedia()


def test_graph_files_open_by_their_ending(traced, tmp_path):
    traced.save(tmp_path / "a.graph")
    for name in ("a.json", "a.json.gz"):
        write_graph_json(traced, tmp_path / name)
        assert_same_graph(traced, open_graph(tmp_path / name))
    assert_same_graph(traced, open_graph(tmp_path / "a.graph"))
    whole = (tmp_path / "a.json.gz").read_bytes()
    write_graph_json(traced, tmp_path / "b.json.gz")
    assert (tmp_path / "b.json.gz").read_bytes() == whole
    torch.save({"x": 1}, tmp_path / "g.pt")
    (tmp_path / "cut.json.gz").write_bytes(whole[:300])
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "nan.json").write_text('{"metadata": NaN}')
    (tmp_path / "digits.json").write_text("1" * 10_000)
    (tmp_path / "not.json.gz").write_bytes(b"plain")
    for name in ("g.pt", "cut.json.gz", "deep.json", "nan.json", "digits.json", "not.json.gz", "absent.json"):
        with pytest.raises(UserError):
            open_graph(tmp_path / name)


def random_tensors(latents=12, width=6, *, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (latents, width), "b_enc": (latents,), "W_dec": (latents, width), "b_dec": (width,)}
    shapes |= {"W_skip": (width, width), "threshold": (latents,)}
    made = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    return made | {"threshold": made["threshold"].abs()}


def config(folder, kind="transcoder_set", **more):
    folder.mkdir(exist_ok=True)
    base = {"model_kind": kind, "feature_input_hook": "ln2.hook_normalized", "feature_output_hook": "hook_mlp_out"}
    (folder / "config.yaml").write_text(json.dumps(base | more))


def assert_part(part, layer, wanted, **differs):
    """The part computes what plain tensors say."""
    wanted = wanted | differs
    for name in ("W_enc", "b_enc"):
        torch.testing.assert_close(getattr(part, name), wanted[name], rtol=0, atol=0)
    assert part.read == f"blocks.{layer}.ln2.hook_normalized" and list(part.b_dec) == [f"blocks.{layer}.hook_mlp_out"]
    torch.testing.assert_close(part.b_dec[f"blocks.{layer}.hook_mlp_out"], wanted["b_dec"], rtol=0, atol=0)
    torch.testing.assert_close(part.W_dec[f"blocks.{layer}.hook_mlp_out"], wanted["W_dec"], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_set_of_per_layer_transcoders_is_read_as_stored(tmp_path, dtype):
    config(tmp_path)
    made = [random_tensors(seed=layer, dtype=dtype) for layer in range(11)]
    for layer, tensors in enumerate(made):
        threshold = tensors.pop("threshold")
        skip = {} if layer % 2 else {"W_skip": tensors["W_skip"]}
        names = ("W_enc", "b_enc", "W_dec", "b_dec")
        more = {"activation_function.threshold": threshold} if layer == 2 else {}
        save_file({name: tensors[name] for name in names} | skip | more, tmp_path / f"layer_{layer}.safetensors")
    found = load_transcoders(tmp_path)
    assert [part.layer for part in found] == list(range(11)), "by number, not by name"
    for layer, (part, tensors) in enumerate(zip(found, made, strict=True)):
        assert_part(part, layer, tensors)
        assert part.W_enc.dtype == dtype and (part.W_skip is None) == bool(layer % 2)
        assert part.rule.kind == ("jumprelu" if layer == 2 else "relu") and part.folder == tmp_path
    config(tmp_path, activation="topk", k=3)
    assert [part.rule for part in load_transcoders(tmp_path)] == [Rule("topk", k=3)] * 11


def write_clt(folder, layers=3, latents=5, width=4):
    config(folder, "cross_layer_transcoder")
    generator = torch.Generator().manual_seed(0)
    W_dec = [torch.randn(latents, layers - i, width, generator=generator) for i in range(layers)]
    for i in range(layers):
        tensors = random_tensors(latents, width, seed=i)
        names = ("W_enc", "b_enc", "b_dec", "threshold")
        save_file({f"{name}_{i}": tensors[name] for name in names}, folder / f"W_enc_{i}.safetensors")
        save_file({f"W_dec_{i}": W_dec[i]}, folder / f"W_dec_{i}.safetensors")
    return W_dec


def test_a_cross_layer_transcoder_is_a_part_per_layer_and_writes_each_b_dec_once(tmp_path):
    W_dec = write_clt(tmp_path)
    found = load_transcoders(tmp_path)
    assert [part.layer for part in found] == [0, 1, 2]
    for i, part in enumerate(found):
        assert list(part.W_dec) == [f"blocks.{layer}.hook_mlp_out" for layer in range(i, 3)]
        assert list(part.b_dec) == [f"blocks.{i}.hook_mlp_out"] and part.rule.kind == "jumprelu"
        for j, rows in enumerate(part.W_dec.values()):
            torch.testing.assert_close(rows, W_dec[i][:, j], rtol=0, atol=0)
    (tmp_path / "W_dec_1.safetensors").unlink()
    with pytest.raises(UserError, match="W_dec_1"):
        load_transcoders(tmp_path)


@pytest.mark.parametrize("form", ["gemma1", "gemma2", "sparsify", "saelens"])
def test_other_layouts_encode_the_same(form, tmp_path):
    t = random_tensors()
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    pre, inner = x @ t["W_enc"].T + t["b_enc"], tmp_path / "item"
    wanted, skip = pre * (pre > t["threshold"]), None
    config(tmp_path, transcoders=["item" + {"gemma1": "/params.npz", "gemma2": ".safetensors"}.get(form, "")])
    if form == "gemma1":
        inner.mkdir()
        arrays = {name: tensor.numpy() for name, tensor in t.items() if name != "W_skip"}
        np.savez(inner / "params.npz", **arrays | {"W_enc": t["W_enc"].T.numpy()})
    if form == "gemma2":
        skip = t["W_skip"]
        named = {"w_enc": t["W_enc"].T.contiguous(), "w_dec": t["W_dec"], "affine_skip_connection": skip.T.contiguous()}
        save_file(named | {name: t[name] for name in ("b_enc", "b_dec", "threshold")}, tmp_path / "item.safetensors")
    if form == "sparsify":
        inner.mkdir()
        (inner / "cfg.json").write_text(json.dumps({"activation": "topk", "k": 4, "transcode": False, "d_in": 6}))
        named = {"encoder.weight": t["W_enc"], "encoder.bias": t["b_enc"], "W_dec": t["W_dec"], "b_dec": t["b_dec"]}
        save_file(named, inner / "sae.safetensors")
        wanted = Rule("topk", k=4)((x - t["b_dec"]) @ t["W_enc"].T + t["b_enc"])
    if form == "saelens":
        inner.mkdir()
        (inner / "cfg.json").write_text(
            json.dumps({"architecture": "jumprelu_transcoder", "apply_b_dec_to_input": False})
        )
        named = {"W_enc": t["W_enc"].T.contiguous()} | {
            name: t[name] for name in ("W_dec", "b_enc", "b_dec", "threshold")
        }
        save_file(named, inner / "sae_weights.safetensors")
    [part] = load_transcoders(tmp_path)
    codes = part.encode(x)
    dense = torch.zeros(20, 12).scatter_add_(1, codes.indices, codes.values)
    torch.testing.assert_close(dense, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(part.W_dec["blocks.0.hook_mlp_out"], t["W_dec"], rtol=0, atol=0)
    assert (part.W_skip is None) == (skip is None) and (skip is None or torch.equal(part.W_skip, skip))


def test_gemma_scope_cross_layer_files_are_read_to_the_last_layer(tmp_path):
    config(tmp_path, "cross_layer_transcoder", transcoders=["a.safetensors", "b.safetensors"])
    decoders = [torch.randn(12, 2, 6, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    for i, name in enumerate("ab"):
        t = random_tensors(seed=i)
        named = {"w_enc": t["W_enc"].T.contiguous(), "w_dec": decoders[i]}
        save_file(named | {key: t[key] for key in ("b_enc", "b_dec", "threshold")}, tmp_path / f"{name}.safetensors")
    first, last = load_transcoders(tmp_path)
    assert list(first.W_dec) == ["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"] and len(last.W_dec) == 1
    torch.testing.assert_close(last.W_dec["blocks.1.hook_mlp_out"], decoders[1][:, 1], rtol=0, atol=0)


def make_parts(layers=2, *, crossing=False, rule=None, skip=False, dtype=torch.float32):
    made = []
    for i in range(layers):
        t = random_tensors(seed=i, dtype=dtype)
        sites = [f"blocks.{j}.mlp.hook_out" for j in (range(i, layers) if crossing else [i])]
        W_dec = {site: t["W_dec"] * (j + 1) for j, site in enumerate(sites)}
        threshold = rule or Rule("jumprelu", threshold=t["threshold"])
        keep = KeepRule(1, {"blocks.0.mlp.hook_in": 3.5}) if i == 0 else KeepRule()
        W_skip = t["W_skip"] if skip else None
        b_dec = {sites[0]: t["b_dec"]}
        made.append(Part(f"blocks.{i}.mlp.hook_in", t["W_enc"], t["b_enc"], W_dec, b_dec, threshold, W_skip, keep))
    return made


@pytest.mark.parametrize("crossing", [False, True])
@pytest.mark.parametrize("rule", [None, Rule("relu"), Rule("topk", k=3)])
def test_written_parts_come_back_exactly(crossing, rule, tmp_path):
    made = make_parts(3, crossing=crossing, rule=rule, skip=not crossing, dtype=torch.bfloat16)
    again = load_transcoders(save_transcoders(made[::-1], tmp_path / "set", model_name="tiny"))
    for ours, read in zip(made, again, strict=True):
        assert (read.read, read.keep, list(read.W_dec)) == (ours.read, ours.keep, list(ours.W_dec))
        assert (read.rule.kind, read.rule.k) == (ours.rule.kind, ours.rule.k)
        pairs = [(ours.W_enc, read.W_enc), (ours.b_enc, read.b_enc), (ours.W_skip, read.W_skip)]
        pairs += [(ours.rule.threshold, read.rule.threshold)]
        pairs += [
            (table[site], other[site])
            for table, other in ((ours.W_dec, read.W_dec), (ours.b_dec, read.b_dec))
            for site in table
        ]
        assert all((a is None and b is None) or (torch.equal(a, b) and a.dtype == b.dtype) for a, b in pairs)


def test_what_a_circuit_tracer_folder_cannot_hold_is_refused(tmp_path):
    made, other = make_parts(3), make_parts(2, rule=Rule("relu"))
    wide = parts(transcoder(1, dtype=torch.float32))
    refused = [
        made[1:],
        [made[0], made[0]],
        [made[0], other[1]],
        [made[0], *wide],
        [],
        make_parts(2, crossing=True)[:1],
    ]
    for bad in [*refused, make_parts(2, crossing=True, skip=True)]:
        with pytest.raises(UserError, match="circuit-tracer folder needs"):
            save_transcoders(bad, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
    save_transcoders(made, tmp_path / "good")
    with pytest.raises(UserError, match="empty folder"):
        save_transcoders(made, tmp_path / "good")


def test_damaged_folders_are_refused(tmp_path):
    write_clt(tmp_path)
    texts = ["[", "{}", "model_kind: transcoder_set", "!!python/object/apply:os.system ['x']", "a: &a [*a]"]
    base = "model_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\nfeature_output_hook: mlp.hook_out\n"
    texts += [base, base + "activation: gated", base + "transcoders: [5]", base + "transcoders: [absent.safetensors]"]
    texts += [base + "transcoders: ['hf://nobody/nothing/x.safetensors']", base + "transcoders: [W_enc_0.safetensors]"]
    for text in texts:
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(UserError):
            load_transcoders(tmp_path)
    for shape in ((12, 5), (11, 6), (6,)):
        save_file(random_tensors() | {"W_dec": torch.zeros(shape)}, tmp_path / "layer_0.safetensors")
        (tmp_path / "config.yaml").write_text(base)
        with pytest.raises(UserError, match="layer_0"):
            load_transcoders(tmp_path)
    np.savez(tmp_path / "params.npz", W_enc=np.array([{"an": "object"}], dtype=object))
    (tmp_path / "config.yaml").write_text(base + "transcoders: [params.npz]")
    with pytest.raises(UserError, match=r"params\.npz"):
        load_transcoders(tmp_path)
    (tmp_path / "g.pt").write_bytes(b"\x80\x04.")
    for path in (tmp_path / "g.pt", tmp_path / "none"):
        with pytest.raises(UserError):
            open_dictionaries(path)


def test_dictionaries_of_all_forms_open(tmp_path):
    for layer in (10, 2):
        transcoder(layer).save(tmp_path / f"runs/layer{layer}")
    assert [d.read for d in open_dictionaries(tmp_path / "runs")] == ["blocks.2.mlp.hook_in", "blocks.10.mlp.hook_in"]
    assert len(open_dictionaries(tmp_path / "runs/layer2")) == 1
    t, folder = random_tensors(), tmp_path / "sparse/layers.3.mlp"
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text(json.dumps({"k": 4, "transcode": True, "skip_connection": True}))
    named = {"encoder.weight": t["W_enc"], "encoder.bias": t["b_enc"], "W_dec": t["W_dec"], "b_dec": t["b_dec"]}
    save_file(named | {"W_skip": t["W_skip"]}, folder / "sae.safetensors")
    [part] = open_dictionaries(tmp_path / "sparse")
    assert (part.read, list(part.W_dec)) == ("blocks.3.mlp.hook_in", ["blocks.3.mlp.hook_out"])
    assert torch.equal(part.b_enc, t["b_enc"]) and torch.equal(part.W_skip, t["W_skip"])
    save_transcoders(make_parts(2), tmp_path / "theirs")
    assert [part.layer for part in open_dictionaries(tmp_path / "theirs")] == [0, 1]


def test_convert_writes_both_forms_and_names_what_it_can(traced, tmp_path):
    traced.save(tmp_path / "a.graph")
    result = convert(tmp_path / "a.graph", tmp_path / "a.json.gz", "neuronpedia")
    assert result["nodes"] == len(traced) and result["lost"]
    jsonschema.validate(json.loads(gzip.decompress((tmp_path / "a.json.gz").read_bytes())), SCHEMA)
    for layer in (0, 1):
        transcoder(layer, skip=True).save(tmp_path / f"runs/{layer}")
    assert convert(tmp_path / "runs", tmp_path / "set", "circuit_tracer")["layers"] == [0, 1]
    assert torch.equal(load_file(tmp_path / "set/layer_1.safetensors")["W_skip"], transcoder(1, skip=True).W_skip)
    for bad in ((tmp_path / "a.graph", "circuit_tracer"), (tmp_path / "a.graph", "sparsify")):
        with pytest.raises(UserError, match="neuronpedia"):
            convert(bad[0], tmp_path / "b", bad[1])
