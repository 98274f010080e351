"""The host reads nothing back from the Triton path: every torch operation that it issues is looked at, in the interpreter.

On a device each of these would wait for it, and could not be captured in a CUDA graph: a number taken from a tensor, a
shape that depends on data, a copy to another device.
"""

import pytest
import torch
from kernel_tools import DEVICE, NoSync, integers

pytest.importorskip("triton")
from unweave.kernels import gpu
from unweave.kernels.gpu import gradient, latents, rows


@pytest.fixture
def data(monkeypatch):
    """Small inputs; the check of indices, which the CPU alone makes, is out of the way."""
    for module in (rows, gradient, latents):
        monkeypatch.setattr(module, "check_indices", lambda indices, latents: None)
    monkeypatch.setattr(gradient, "SEGMENT", 4)
    indices = torch.randint(0, 40, (5, 6), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    return integers(5, 20, seed=1), integers(1, 40, 20, seed=2), integers(1, 40, seed=3), integers(5, 6), indices


CALLS = {
    "encode_topk": lambda x, W, b, values, indices: gpu.encode_topk(x, W, b, 4),
    "topk": lambda x, W, b, values, indices: gpu.topk(x, 4),
    "encode_threshold": lambda x, W, b, values, indices: gpu.encode_threshold(x, W, b, b, 8),
    "encode_batch_topk": lambda x, W, b, values, indices: gpu.encode_batch_topk(x, W, b, 3, 8),
    "decode": lambda x, W, b, values, indices: gpu.decode(values, indices, W[0]),
    "contract": lambda x, W, b, values, indices: gpu.contract(x, indices, W[0]),
    "weight_gradient": lambda x, W, b, values, indices: gpu.weight_gradient(values, indices, x, 40),
    "sae_gradient": lambda x, W, b, values, indices: gpu.sae_gradient(x, x, values, indices, W[0]),
    "segment": lambda x, W, b, values, indices: gpu.segment(
        values, indices, 40, torch.tensor([0.0, 1.0, 2.0]).to(x), 3
    ),
}


@pytest.mark.parametrize("op", CALLS)
def test_nothing_is_read_back(op, data):
    with NoSync() as watched:
        CALLS[op](*data)
    assert watched.seen


def test_every_op_is_among_them():
    assert set(CALLS) == set(gpu.__all__)


def test_a_read_is_seen(data):
    x = data[0]
    for read in (
        lambda: x.sum().item(),
        lambda: bool(x[0, 0]),
        lambda: x.nonzero(),
        lambda: x[x > 0],
        lambda: int(x.max()),
    ):
        with pytest.raises(AssertionError), NoSync():
            read()
