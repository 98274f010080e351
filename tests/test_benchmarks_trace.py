"""The comparison of tracers: what counts as the same edges, that our side traces the case, that a broken promise shows."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import trace_ours
from trace_case import Case, load_case, make_case
from trace_runs import INFLUENCE, OURS, RIVAL, difference, one_run, summary

# The standard library has a module `trace` too, and comes first here.
spec = importlib.util.spec_from_file_location("benchmark_trace", Path(trace_ours.__file__).with_name("trace.py"))
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)

TINY = Case(layers=2, latents=64, prompt=6, nodes=20, d=32, mlp=48, vocab=50, k=5, context=16)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    path = tmp_path_factory.mktemp("trace") / "case.safetensors"
    make_case(TINY, path)
    return path


def toy_graph():
    """Two tokens, two latents and a logit; the second latent of each side is another one."""
    nodes = [(0, -1, 0, 7), (0, -1, 1, 8), (2, 0, 1, 3), (2, 1, 1, 5), (3, 2, 1, 9)]
    edges = [(2, 0, 1.0), (2, 1, -3.0), (3, 2, 2.0), (4, 1, 4.0), (4, 2, 1.0), (4, 3, 5.0)]
    target, source, weight = (torch.tensor(column) for column in zip(*edges, strict=True))
    return {"nodes": torch.tensor(nodes), "target": target, "source": source, "weight": weight}


def test_graphs_in_another_order_are_the_same():
    ours = toy_graph()
    order = torch.tensor([4, 2, 0, 3, 1])
    number = order.argsort()
    theirs = {
        "nodes": ours["nodes"][order], "target": number[ours["target"]], "source": number[ours["source"]],
        "weight": ours["weight"],
    }  # fmt: skip
    assert difference(ours, theirs) == (2, 3, 0.0)


def test_only_common_nodes_count_and_the_worst_row_is_told():
    ours, theirs = toy_graph(), toy_graph()
    ours["nodes"][3] = torch.tensor((2, 1, 1, 6))
    ours["weight"][2] = 100.0  # into a node that they lack
    assert difference(ours, theirs) == (1, 2, 0.0)
    ours["weight"][4] = 1.5  # of the logit's row, 4 + 1 without the node that we lack
    assert difference(ours, theirs).worst == pytest.approx(0.1)


def test_an_edge_that_one_side_lacks_is_a_difference():
    ours, theirs = toy_graph(), toy_graph()
    ours["nodes"][0, 0] = -1
    assert difference(ours, theirs).worst == 0
    ours = {name: tensor if name == "nodes" else tensor[1:] for name, tensor in toy_graph().items()}
    assert difference(ours, theirs).worst == pytest.approx(0.25)


def test_case_reads_back_as_it_was_drawn(case, tmp_path):
    loaded = load_case(case)
    assert loaded.case == TINY
    assert loaded.prompt.shape == (6,) and loaded.prompt[0] == 0
    assert [weights["W_enc"].shape for weights in loaded.transcoders] == [(64, 32)] * 2
    make_case(TINY, tmp_path / "again")
    again = load_case(tmp_path / "again").model
    assert again.keys() == loaded.model.keys()
    assert all(torch.equal(again[name], weight) for name, weight in loaded.model.items())


def test_model_and_transcoders_are_the_ones_of_the_file(case):
    loaded = load_case(case)
    model, dictionaries = trace_ours.boot(loaded), trace_ours.transcoders(loaded)
    assert torch.equal(model.unembed.W_U, loaded.model["lm_head.weight"].T)
    # Position 0 differs: on one token a block adds MLP and value alone, so logits follow by hand.
    stream = loaded.model["model.embed_tokens.weight"][:1]
    for layer in range(TINY.layers):
        weight = {name.split(f"layers.{layer}.")[-1]: w for name, w in loaded.model.items()}
        normed = rms(stream) * weight["input_layernorm.weight"]
        stream = stream + normed @ weight["self_attn.v_proj.weight"].T @ weight["self_attn.o_proj.weight"].T
        normed = rms(stream) * weight["post_attention_layernorm.weight"]
        hidden = torch.nn.functional.silu(normed @ weight["mlp.gate_proj.weight"].T)
        stream = stream + (hidden * (normed @ weight["mlp.up_proj.weight"].T)) @ weight["mlp.down_proj.weight"].T
    logits = rms(stream) * loaded.model["model.norm.weight"] @ loaded.model["lm_head.weight"].T
    torch.testing.assert_close(model(loaded.prompt[None])[0, :1], logits, rtol=1e-4, atol=1e-4)
    assert [dictionary.read for dictionary in dictionaries] == ["blocks.0.mlp.hook_in", "blocks.1.mlp.hook_in"]


def rms(x):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def test_our_process_writes_numbers_and_a_graph(case, tmp_path):
    numbers = one_run(OURS, sys.executable, case, tmp_path / "ours", repeats=2, threads=1)
    assert len(numbers["later"]) == 2 and numbers["added_mb"] > 0
    graph = load_file(tmp_path / "ours.safetensors")
    kinds = graph["nodes"][:, 0]
    assert int((kinds == 2).sum()) == TINY.nodes
    assert int((kinds == 0).sum()) == TINY.prompt and int((kinds == 1).sum()) == TINY.layers * TINY.prompt
    assert len(graph["weight"]) == len(graph["target"]) > TINY.nodes
    assert summary([numbers])["wall_s"] > 0


def test_without_their_interpreter_only_ours_is_measured(monkeypatch, capsys):
    monkeypatch.delenv("UNWEAVE_RIVAL", raising=False)
    monkeypatch.setattr(
        bench, "one_run", lambda *_: {"later": [numbers], "first": numbers, "forward_s": 1, "added_mb": 1}
    )
    numbers = {"wall_s": 1.0, "cpu_s": 1.0}
    rows = bench.run((TINY,))
    assert [row["method"] for row in rows] == [OURS, INFLUENCE] and "only ours" in capsys.readouterr().out
    assert bench.passed(rows) is None


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({}, None),
        ({"faster": 9.0}, "9.0 (12.0 in CPU time) times"),
        ({"faster_cpu": 9.0}, "12.0 (9.0 in CPU time) times"),
        ({"faster": 9.0, "method": INFLUENCE}, None),
        ({"memory_share": 0.3}, "0.30 of the added memory"),
        ({"worst_difference": 2e-5}, "2.0e-05 of its row"),
        ({"worst_difference": float("nan")}, "nan of its row"),
        ({"common_features": 0}, "no feature node"),
    ],
)
def test_a_broken_promise_is_named(change, complaint):
    row = {
        "layers": 2,
        "prompt": 6,
        "nodes": 20,
        "method": OURS,
        "faster": 12.0,
        "faster_cpu": 12.0,
        "memory_share": 0.2,
    }
    row |= {"common_features": 15, "worst_difference": 1e-7} | change
    told = bench.passed([row, row | {"method": RIVAL, "faster": ""}])
    assert told is None if complaint is None else complaint in told


@pytest.mark.skipif("UNWEAVE_RIVAL" not in os.environ, reason="UNWEAVE_RIVAL names no interpreter with circuit-tracer")
def test_circuit_tracer_finds_the_same_edges(case, tmp_path):
    one_run(RIVAL, os.environ["UNWEAVE_RIVAL"], case, tmp_path / "theirs", repeats=1, threads=1)
    one_run(INFLUENCE, sys.executable, case, tmp_path / "ours", repeats=1, threads=1)
    found = difference(*(load_file(tmp_path / f"{name}.safetensors") for name in ("ours", "theirs")))
    assert found.common == TINY.nodes and found.worst < 1e-5
    assert json.loads((tmp_path / "theirs.json").read_text())["added_mb"] > 0
