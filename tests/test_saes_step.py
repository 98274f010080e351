"""The training step by hand against autograd on the losses' definitions, the same step on every path, and its faults."""

import json
import sys
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from kernel_tools import NoSync
from saes_toys import Synthetic, shards_of
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.testing import assert_close
from unweave.kernels import decode, encode_topk
from unweave.kernels.dispatch import has_triton
from unweave.saes import TrainConfig, UserError, train
from unweave.saes import step as steps
from unweave.saes.adam import Adam
from unweave.saes.device import GraphedStep, on_device
from unweave.saes.losses import auxk, fraction_unexplained
from unweave.saes.rows import Pair
from unweave.saes.runs.run import Run
from unweave.saes.state import METRICS, TrainState, lr_factor, take_step
from unweave.saes.step import gradients

LATENTS, K, BATCH = 40, 4, 24
D = {"sae": (12, 12), "transcoder": (12, 9), "skip": (12, 9)}


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def config(kind="sae", **changes):
    sites = {} if kind == "sae" else dict(site_out="b", skip=kind == "skip")
    given = dict(site="a", latents=LATENTS, k=K, batch=BATCH, tokens=BATCH * 50, lr=0.01, warmup=0.0, **sites)
    return TrainConfig(**{**given, **changes})


def weights_of(kind, dtype=torch.float64):
    d_in, d_out = D[kind]
    unit = torch.nn.functional.normalize
    w = {
        "W_enc": unit(randn(LATENTS, d_in, seed=1), dim=1), "b_enc": 0.1 * randn(LATENTS, seed=2),
        "W_dec": unit(randn(LATENTS, d_out, seed=3), dim=1), "b_dec": 0.1 * randn(d_out, seed=4),
    }  # fmt: skip
    if kind == "skip":
        w["W_skip"] = 0.1 * randn(d_out, d_in, seed=5)
    return {name: tensor.to(dtype) for name, tensor in w.items()}


def pair_of(kind, dtype=torch.float64, seed=6):
    x = randn(BATCH, D[kind][0], seed=seed).to(dtype)
    return Pair(x, x if kind == "sae" else randn(BATCH, D[kind][1], seed=seed + 100).to(dtype))


def state_of(kind, dtype=torch.float64, dead=(), **changes):
    state = TrainState(config(kind, **changes), weights_of(kind, dtype))
    state.silent_tokens[list(dead)] = 10**9
    return state


def loss_by_definition(w, pair, own, is_dead, k_aux):
    """What losses.py says, differentiable; AuxK on every n-th token."""
    is_sae = not own.dictionary.is_transcoder
    x = pair.x - w["b_dec"] if is_sae else pair.x
    values, indices = encode_topk(x, w["W_enc"], w["b_enc"], K)
    y_hat = decode(values, indices, w["W_dec"]) + w["b_dec"]
    if "W_skip" in w:
        y_hat = y_hat + x @ w["W_skip"].T
    stride = max(1, round(k_aux / K))
    error = (pair.y - y_hat)[::stride]
    dead = auxk(x[::stride], error, is_dead, w["W_enc"], w["b_enc"], w["W_dec"], k_aux)
    return fraction_unexplained(pair.y, y_hat) + own.auxk * dead


def gradients_of(state, pair, monkeypatch):
    """The gradients that a step forms, by name."""
    found = {}

    def update(name, weight, gradient, lr, rows=None):
        found.setdefault(name, torch.zeros_like(weight))[slice(None) if rows is None else rows] += gradient

    monkeypatch.setattr(state.adam, "update", update)
    take_step(state, steps.update, pair)
    return found


@pytest.mark.parametrize("kind", D)
@pytest.mark.parametrize("dead", [(), (3,), range(20, 40)], ids=["none dead", "one dead", "many dead"])
@pytest.mark.parametrize("path", ["cpu", "reference"])
def test_the_gradient_is_that_of_the_losses(kind, dead, path, monkeypatch):
    monkeypatch.setenv("UNWEAVE_KERNELS", path)
    monkeypatch.setattr(steps, "BLOCK", 16)  # three blocks, the last one partial
    state, pair = state_of(kind, dead=dead), pair_of(kind)
    is_dead = state.silent_tokens > state.config.dead_tokens
    w = {name: tensor.clone().requires_grad_() for name, tensor in state.weights.items()}
    loss_by_definition(w, pair, state.config, is_dead, state.k_aux).backward()
    expected = {name: tensor.grad for name, tensor in w.items()}
    along = (expected["W_dec"] * w["W_dec"]).sum(1, keepdim=True) * w["W_dec"]
    expected["W_dec"] = (expected["W_dec"] - along).detach()
    found = gradients_of(state, pair, monkeypatch)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")
    assert all(gradient.abs().max() > 0 for gradient in expected.values())


@pytest.mark.parametrize("kind", D)
def test_steps_are_those_of_torchs_adam_on_the_losses(kind):
    state = state_of(kind, dead=range(25, 40), dead_after=2 * BATCH)
    w = {name: tensor.clone().requires_grad_() for name, tensor in weights_of(kind).items()}
    silent = state.silent_tokens.clone()
    groups = [{"params": [tensor], "faster": 3.0 if tensor.ndim == 1 else 1.0} for tensor in w.values()]
    adam = torch.optim.Adam(groups, lr=0.01, eps=1e-8)
    for number in range(12):
        pair = pair_of(kind, seed=number)
        take_step(state, steps.update, pair)
        for group in adam.param_groups:
            group["lr"] = 0.01 * lr_factor(number, state.config) * group["faster"]
        is_dead = silent > state.config.dead_tokens
        loss_by_definition(w, pair, state.config, is_dead, state.k_aux).backward()
        with torch.no_grad():
            x = pair.x - w["b_dec"] if kind == "sae" else pair.x
            values, indices = encode_topk(x, w["W_enc"], w["b_enc"], K)
            W_dec = w["W_dec"]
            W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec
            adam.step()
            adam.zero_grad()
            W_dec /= W_dec.norm(dim=1, keepdim=True)
            silent += BATCH
            silent[indices[values > 0]] = 0
        assert silent.tolist() == state.silent_tokens.tolist()
    for name, tensor in w.items():
        assert_close(state.weights[name], tensor.detach(), rtol=1e-5, atol=1e-8)  # the rate is a float32


@pytest.mark.skipif(not has_triton(), reason="triton is not installed")
@pytest.mark.parametrize("kind", D)
def test_the_triton_path_takes_the_same_step(kind, monkeypatch):
    results = {}
    for path in ("cpu", "triton"):
        monkeypatch.setenv("UNWEAVE_KERNELS", path)
        state = state_of(kind, torch.float32, dead=range(20, 40))
        metrics = [take_step(state, steps.update, pair_of(kind, torch.float32, seed=seed)) for seed in range(2)]
        results[path] = {**state.weights, "silent": state.silent_tokens, "metrics": torch.stack(metrics)}
    for name, tensor in results["cpu"].items():
        assert_close(
            results["triton"][name], tensor, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("side", ["x", "y"])
@pytest.mark.parametrize("path", ["cpu", "reference"])
def test_a_step_on_a_number_that_is_not_finite_changes_nothing(bad, side, path, monkeypatch):
    monkeypatch.setenv("UNWEAVE_KERNELS", path)
    state = state_of("transcoder", torch.float32, dead=range(20, 40))
    take_step(state, steps.update, pair_of("transcoder", torch.float32))
    tensors = {**state.weights, **state.adam.tensors(), "silent": state.silent_tokens}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    pair = pair_of("transcoder", torch.float32)
    getattr(pair, side)[5, 2] = bad
    metrics = dict(zip(METRICS, take_step(state, steps.update, pair).tolist(), strict=True))
    assert metrics["is_skipped"] == 1.0
    for name, tensor in tensors.items():
        assert_close(tensor, before[name], rtol=0, atol=0)
    assert state.step == 2
    assert not take_step(state, steps.update, pair_of("transcoder", torch.float32))[METRICS.index("is_skipped")]


class Holed:
    """Batches of a stream, some of them poisoned where StreamRows does not look: on the way to the step."""

    def __init__(self, monkeypatch, bad):
        module = sys.modules[train.__module__]

        self.seen = 0
        scaled = module.scaled

        def poisoned(pair, *rest):
            self.seen += 1
            pair = scaled(pair, *rest)
            if self.seen in bad:
                pair.x[0, 0] = torch.nan
            return pair

        monkeypatch.setattr(module, "scaled", poisoned)


def stream(steps):
    task = Synthetic(d=12, true=24, active=3)
    return (task.batch(64, seed) for seed in range(steps))


def small(**changes):
    return TrainConfig(**{**dict(latents=32, k=4, batch=64, tokens=64 * 12, log_every=4, drop_norm=0.0), **changes})


def test_poisoned_batches_are_reported_within_a_log_interval(tmp_path, monkeypatch, capsys):
    Holed(monkeypatch, bad={2, 3, 8})
    own = train(small(), stream(12), tmp_path / "out", device="cpu", progress=False)
    assert own.W_enc.isfinite().all() and own.W_dec.isfinite().all()
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("skipped") for line in lines] == [[2, 3], [8], None]
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in lines)
    said = capsys.readouterr().err
    assert "batches 2, 3:" in said and "batches 8:" in said


def test_training_ends_where_no_batch_is_finite(tmp_path, monkeypatch):
    Holed(monkeypatch, bad=range(5, 40))
    with pytest.raises(UserError, match="got none in steps 5 to 16; lower --lr"):
        train(small(tokens=64 * 40), stream(40), tmp_path / "out", device="cpu", progress=False)


def test_a_log_interval_without_a_finite_loss_is_a_line_without_one(tmp_path, monkeypatch):
    Holed(monkeypatch, bad=[3, 4, 12])
    train(small(log_every=2), stream(12), tmp_path / "two", device="cpu", progress=False)
    lines = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert lines[1].keys() == {"step", "tokens", "tokens_per_s", "skipped"} and lines[1]["skipped"] == [3, 4]
    assert lines[5]["skipped"] == [12] and lines[5]["loss"] > 0
    Holed(monkeypatch, bad=[12])
    own = train(small(log_every=1), stream(12), tmp_path / "one", device="cpu", progress=False)
    assert own.W_enc.isfinite().all()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nMore of it"),
        RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 GiB."),
    ],
    ids=["CUDA", "CPU"],
)
def test_running_out_of_memory_names_what_to_lower(error, monkeypatch):
    def full(*args):
        raise error

    monkeypatch.setattr("unweave.saes.step.encode_topk", full)
    with pytest.raises(UserError, match=r"32 latents .* batch of 64 tokens; .*9 GiB.*; lower --batch, or --latents"):
        train(small(), stream(2), device="cpu", progress=False)


def test_gradients_repeat_bit_for_bit():
    values, indices = encode_topk(*(randn(*shape, dtype=torch.float32) for shape in [(500, 12), (40, 12), (40,)]), K)
    slots = [
        steps.Slots(values, indices, randn(500, 12, dtype=torch.float32), randn(500, 12, seed=1, dtype=torch.float32))
    ]
    W_dec = randn(40, 12, dtype=torch.float32)
    once, again = (
        [bias, *(part for block in rows for part in block[1:])]
        for bias, rows in (gradients(slots, W_dec) for _ in range(2))
    )
    for one, other in zip(once, again, strict=True):
        assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("kind", D)
def test_on_cuda_no_shape_and_no_number_of_the_step_depends_on_the_data(kind, monkeypatch):
    """On fake CUDA tensors an operation whose result the host would have to read raises; torch's Adam has no fake kernel."""
    monkeypatch.setattr(Adam, "update", lambda *args, **kwargs: None)
    with FakeTensorMode():
        device = torch.device("cuda")
        weights = {name: torch.empty(tensor.shape, device=device) for name, tensor in weights_of(kind).items()}
        x = torch.empty(BATCH, D[kind][0], device=device)
        pair = Pair(x, x if kind == "sae" else torch.empty(BATCH, D[kind][1], device=device))
        state = TrainState(config(kind), weights)
        metrics = take_step(state, steps.update, pair)
        assert metrics.device.type == "cuda" and metrics.shape == (len(METRICS),)
        with pytest.raises(DataDependentOutputException):
            metrics.sum().item()


@pytest.mark.parametrize("kind", D)
def test_the_host_reads_nothing_back_where_the_step_is_to_be_captured(kind, monkeypatch):
    monkeypatch.setenv("UNWEAVE_KERNELS", "reference")  # the kernels' own tests look into the Triton path
    state, pair = state_of(kind, torch.float32, dead=range(20, 40)), pair_of(kind, torch.float32)
    with NoSync() as watched:
        take_step(state, steps.update, pair)
    assert {"encode_topk", "sae_gradient", "_fused_adam_"} <= watched.seen


def test_the_graphed_step_replays_with_new_data_and_runs_odd_batches_as_they_are(monkeypatch):
    """What can be said of the capture without a GPU: a stand-in graph that runs the captured function when replayed."""

    class Graph:
        def __init__(self):
            self.replays = 0

        def replay(self):
            self.replays += 1
            own.metrics.copy_(steps.update(own.state, own.pair))

    graphs = []

    @contextmanager
    def capture(graph, capture_error_mode):
        assert capture_error_mode == "thread_local"  # a checkpoint's thread may be waiting for its copies
        graphs.append(graph)
        kept = {name: tensor.clone() for name, tensor in everything(own.state).items()}
        yield  # a capture computes nothing
        for name, tensor in everything(own.state).items():
            tensor.copy_(kept[name])

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    own, plain = GraphedStep(state_of("skip")), state_of("skip")
    for number in range(8):
        pair = pair_of("skip", seed=number)
        if number == 5:
            pair = Pair(pair.x[:7], pair.y[:7])
        assert_close(own(pair), take_step(plain, steps.update, pair), rtol=0, atol=0)
    assert [graph.replays for graph in graphs] == [4]
    for name, tensor in everything(own.state).items():
        assert_close(tensor, everything(plain)[name], rtol=0, atol=0)
    assert own.state.step == plain.step == 8


def everything(state):
    return {**state.weights, **state.adam.tensors(), "silent": state.silent_tokens}


def test_bfloat16_rounds_what_the_encoder_multiplies_and_nothing_else():
    pair = pair_of("sae", torch.float32)
    state = state_of("sae", torch.float32, matmul="bfloat16")
    w = {name: tensor.clone() for name, tensor in state.weights.items()}
    fvu = take_step(state, steps.update, pair)[METRICS.index("fvu")]
    rounded = [(pair.x - w["b_dec"]).bfloat16().float(), w["W_enc"].bfloat16().float()]
    values, indices = encode_topk(*rounded, w["b_enc"], K)
    assert_close(fvu, fraction_unexplained(pair.y, decode(values, indices, w["W_dec"]) + w["b_dec"]), rtol=1e-5, atol=0)
    exact = take_step(state_of("sae", torch.float32), steps.update, pair)[METRICS.index("fvu")]
    assert fvu != exact
    assert all(tensor.dtype == torch.float32 for tensor in everything(state).values() if tensor.is_floating_point())


def test_an_error_that_is_not_of_memory_is_not_taken_for_one(monkeypatch):
    def broken(*args):
        raise RuntimeError("sizes do not match")

    monkeypatch.setattr("unweave.saes.step.encode_topk", broken)
    with pytest.raises(RuntimeError, match="sizes do not match"):
        train(small(), stream(2), device="cpu", progress=False)


def test_rows_go_to_cuda_from_pinned_memory_once_each_and_never_far_ahead(monkeypatch):
    """Streams, events and pinned memory are stand-ins that write down what is asked of them."""
    asked = []

    class Queue:
        def wait_stream(self, other):
            asked.append("wait")

        def record_event(self):
            event = SimpleNamespace(synchronize=lambda: asked.append("synchronize"))
            asked.append("record")
            return event

    def pin(rows):
        asked.append("pin")
        return SimpleNamespace(
            to=lambda device, non_blocking: SimpleNamespace(rows=rows, record_stream=lambda queue: None)
        )

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Queue())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Queue())
    monkeypatch.setattr(torch.cuda, "stream", lambda queue: nullcontext())
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr("unweave.saes.device.Pair", lambda x, y: (x, y))
    pairs = [pair_of("sae", seed=seed) for seed in range(4)]
    moved = list(on_device(pairs, torch.device("cuda")))
    assert [x.rows is pair.x and y is x for (x, y), pair in zip(moved, pairs, strict=True)] == [True] * 4
    assert asked == ["pin", "wait", "record"] * 2 + ["pin", "wait", "record", "synchronize"] * 2


@pytest.mark.parametrize("step", [10, 20])
def test_a_run_killed_at_its_last_checkpoint_resumes_without_another_step(tmp_path, monkeypatch, step):
    x = stream(20)
    shards = shards_of(tmp_path / "shards", {"a": torch.cat(list(x))})
    own = small(site="a", tokens=64 * 20, checkpoint_every=10, log_every=5, decay=0.0)
    straight = train(own, shards, tmp_path / "straight", device="cpu", progress=False)
    finish, checkpoint = Run.finish, Run.checkpoint

    def killed(self, state, rows):
        checkpoint(self, state, rows)
        if state.step == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "checkpoint", killed)
        train(own, shards, tmp_path / "cut", device="cpu", progress=False)
    assert Run.finish is finish
    resumed = train(own, shards, tmp_path / "cut", device="cpu", progress=False, resume=True)
    assert_close(dict(resumed.named_parameters()), dict(straight.named_parameters()), rtol=0, atol=0)
    lines = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [5, 10, 15, 20]


def test_a_finished_run_of_a_version_without_a_setting_is_reopened(tmp_path):
    shards = shards_of(tmp_path / "shards", {"a": torch.cat(list(stream(12)))})
    own = small(site="a")
    first = train(own, shards, tmp_path / "out", device="cpu", progress=False)
    path = tmp_path / "out" / "config.json"
    older = json.loads(path.read_text())
    del older["matmul"]
    path.write_text(json.dumps(older))
    again = train(own, shards, tmp_path / "out", device="cpu", progress=False, resume=True)
    assert_close(dict(again.named_parameters()), dict(first.named_parameters()), rtol=0, atol=0)


def test_a_handful_of_rows_at_the_end_of_a_stream_is_no_batch(tmp_path):
    rows = torch.cat(list(stream(5)))
    for left, steps_taken in ((1, 5), (31, 5), (32, 6), (63, 6)):
        data = [rows, rows[:left]]
        out = tmp_path / str(left)
        train(small(tokens=64 * 50, log_every=1), data, out, device="cpu", progress=False)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert len(lines) == steps_taken
        assert all(line["fvu"] < 10 for line in lines)
