"""The benchmarks themselves: what the model counts, what the dense reference computes, and that a broken promise shows."""

import math
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import model
import ops
import scaling
import step
import timing
import work
from dense import Dense
from unweave.kernels import decode, encode_topk, topk
from unweave.kernels.cpu import preselect
from unweave.saes.losses import fraction_unexplained

SMALL = work.Shape(tokens=128, d=64, latents=256, k=4, size=2)


def test_small_shape_counted_by_hand():
    # 8 groups a row: 128 * 8 * 12 bytes of keys and words; 512 slots; x 16 KiB, W 32 KiB, both in the cache.
    matmul = work.group_matmul(SMALL)
    assert matmul.scratch == 12_288 + 8 * 256 * 2
    assert matmul.bytes == matmul.scratch + 16_384 + 32_768
    assert matmul.tensor == 2 * 128 * 256 * 64
    assert matmul.lanes == 11.4 * 128 * 256
    assert work.merge(SMALL).bytes == 12_288 + 512 * 8 + 512
    # A group of random rows has Poisson(1/2) of the top 4: 3 or more with probability .014388, of 8 groups .1151.
    doubted = 1 - math.exp(-8 * 0.0143877)
    assert work.repair(SMALL).scratch == pytest.approx(512 + doubted * (4096 + 2 * 512 * 8), rel=1e-5)
    assert work.order(SMALL) == work.Work(512 * 20, 512 * 8, lanes=2 * 512 * 4)
    assert work.dense_matmul(SMALL).scratch == 65_536
    assert work.topk_of_matrix(SMALL).scratch == 3 * 65_536
    assert work.decode(SMALL).bytes == 512 * 12 + 128 * 32 + 256 * 64 * 2 + 128 * 64 * 4
    assert work.contract(SMALL).bytes == 128 * 64 * 2 + 512 * 8 + 256 * 64 * 2 + 512 * 4
    assert work.adam(SMALL).bytes == 28 * (2 * 256 * 64 + 256 + 64)
    row = model.row("encode_topk", SMALL, model.OPS["encode_topk"])
    scratch = 16_384 + 16_896 + 512 + doubted * 12_288 + 4096
    assert row["scratch_share"] == pytest.approx(scratch / (4 * 65_536), rel=1e-3)


def test_float32_counts_no_tensor_cores_and_more_reads():
    wide = SMALL._replace(size=4)
    assert work.group_matmul(wide).tensor == 0
    assert work.group_matmul(wide).lanes == 128 * 256 * (64 + 11.4)
    assert work.topk_of_matrix(wide).scratch == 5 * 128 * 256 * 4


def test_wide_rows_are_merged_in_segments_and_read_once():
    shape = work.Shape(8192, 768, 2**20, 128, 2)
    row, lists = 12 * 8192 * 2**15, 8 * 8192 * 128 + 4 * 8192
    # 65,536 keys in 8 segments: a list of each, read and cut to one.
    assert work.merge(shape).bytes == row + (8 + 8 + 1) * lists


def test_weights_beyond_the_cache_are_read_once_a_band():
    shape = work.Shape(2048, 4096, 16_384, 32, 2)
    assert work.matmul(shape, 0).bytes == shape.x + 2 * shape.weights
    assert work.matmul(shape._replace(size=4), 0).bytes == 2 * shape.x + 4 * 2 * shape.weights


def test_model_has_the_numbers_of_the_kernels():
    pytest.importorskip("triton")
    from unweave.kernels.gpu import gradient, groups, merge, rows

    assert {c.shape: (c.constants["BM"], c.constants["BN"]) for c in groups.MATMUL} == {
        "16_bit": (128, 128),
        "32_bit": (64, 128),
    }
    ours = work.WIDEST, work.STRIP, work.CACHE, work.SEGMENT
    assert (merge.WIDEST, rows.STRIP, rows.CACHE, gradient.SEGMENT) == ours


def test_floor_is_below_every_model():
    for row in model.run():
        if row["op"] in model.OPS:
            assert row["floor_ms"] <= row["ms"] <= row["serial_ms"], row


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def copies(dense):
    return {name: tensor.detach().clone().requires_grad_() for name, tensor in dense.w.items()}


@pytest.mark.parametrize("has_dead", [False, True])
def test_dense_step_is_adam_on_the_losses(double, seed, has_dead):
    x, k = torch.randn(40, 8), 3
    dense = Dense(x, latents=32, k=k, lr=1e-2, seed=0, dead_after=0)
    is_dead = torch.arange(32) % 3 == 0 if has_dead else torch.zeros(32, dtype=torch.bool)
    dense.silent = is_dead.double()
    w = copies(dense)
    values, indices = encode_topk(x - w["b_dec"], w["W_enc"], w["b_enc"], k)
    y_hat = decode(values, indices, w["W_dec"]) + w["b_dec"]
    loss = fraction_unexplained(x, y_hat)
    if has_dead:
        error = (x - y_hat).detach()
        pre = (x - w["b_dec"]) @ w["W_enc"][is_dead].T + w["b_enc"][is_dead]
        aux, chosen = topk(pre, 4)
        missed = error - decode(aux.relu(), chosen, w["W_dec"][is_dead])
        loss = loss + missed.square().sum() / error.square().sum() / 32
    adam = torch.optim.Adam(w.values(), lr=1e-2)
    loss.backward()
    adam.step()

    assert_close(dense.step(x), loss.detach(), rtol=1e-12, atol=0)
    for name in w:
        assert_close(dense.w[name].grad, w[name].grad, rtol=1e-9, atol=1e-12)
    for name in ("W_enc", "b_enc", "b_dec"):
        assert_close(dense.w[name], w[name], rtol=0, atol=1e-6)
    assert_close(dense.w["W_dec"], torch.nn.functional.normalize(w["W_dec"], dim=1), rtol=0, atol=1e-6)
    fired = torch.zeros(32, dtype=torch.bool)
    fired[indices[values > 0]] = True
    assert torch.equal(dense.silent == 0, fired)


def test_bfloat16_is_asked_for_only_where_it_is_allowed(monkeypatch):
    asked = []
    monkeypatch.setattr(preselect, "pays", lambda *_: asked.append(True))
    size = step.Work(d=16, n_true=32, active=3.0, latents=64, k=4, batch=32)
    x = step.make_batches(size, 1)[0]
    step.make_step(step.OURS_FLOAT32, x, size, False)(x)
    assert not asked
    step.make_step(step.OURS, x, size, False)(x)
    assert asked


@pytest.mark.parametrize("name", step.METHODS)
def test_auxk_has_work_from_the_second_step_on(name):
    size = step.Work(d=16, n_true=32, active=3.0, latents=256, k=2, batch=32)
    x = step.make_batches(size, 1)[0]
    idle, busy = step.make_step(name, x, size, False), step.make_step(name, x, size, True)
    idle(x), busy(x)
    assert idle(x) == 0
    assert busy(x) > 0.1


def test_a_step_is_divided_by_the_floor_before_it(monkeypatch):
    seconds = iter([1.0, 100.0, 2.0, 6.0, 4.0, 8.0])  # floor, step; the first pair is warm-up
    monkeypatch.setattr(step, "timed", lambda function, *args: (next(seconds), 0.5))
    (row,) = step.measure({"ours": lambda x: 0.5}, [torch.zeros(1)], lambda: None, warm=1, steps=2)
    assert (row["floors"], row["floor_ms"], row["dead_share"]) == (2.5, 3000.0, 0.5)


def test_peak_is_that_of_the_fresh_process():
    held = torch.ones(200_000_000)  # 763 MB that must not count
    idle, busy = timing.in_fresh_process(torch.ones, 1), timing.in_fresh_process(torch.ones, 60_000_000)
    assert idle < held.nbytes / 2**20
    assert 200 < busy - idle < 260


GOOD_STEP = {
    "method": step.OURS, "auxk": False, "threads": 1, "floors": 1.1, "peak_mb": 700.0, "amx": True
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"floors": 1.16},
        {"auxk": True, "floors": 1.61},
        {"amx": False, "floors": 1.81},
        {"method": step.OURS_FLOAT32, "floors": 1.81},
        {"method": step.OURS_FLOAT32, "auxk": True, "floors": 2.41},
        {"peak_mb": 1107.0},
    ],
)
def test_a_broken_promise_of_the_step_shows(change):
    assert step.passed([GOOD_STEP, {**GOOD_STEP, "method": step.DENSE, "floors": 10.0, "peak_mb": 2000.0}]) is None
    assert step.passed([GOOD_STEP, {**GOOD_STEP, **change}]) is not None


def test_a_broken_promise_of_the_others_shows():
    row = {"op": "encode_topk", "dtype": "bfloat16", "d": 768, "latents": 16_384, "k": 32, "scratch_share": 0.1}
    assert model.passed([row, {**row, "op": "matmul_topk", "scratch_share": 1.0}]) is None
    assert model.passed([row, {**row, "scratch_share": 0.11}]) is not None
    row = {"latents": 4096, "k": 32, "step": 4.0}
    assert scaling.passed([row]) is None
    assert scaling.passed([row, {**row, "step": 5.0}]) is not None
    row = {"op": "decode", "d": 768, "ms": 1.0, "plain_ms": 1.0}
    assert ops.passed([row]) is None
    assert ops.passed([row, {**row, "ms": 1.2}]) is not None
