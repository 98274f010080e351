import pytest
import torch
from torch.testing import assert_close
from unweave.kernels import decode, encode_topk, topk

SHAPES = [(1, 1, 1), (3, 37, 5), (64, 129, 16), (7, 4096, 64), (5, 8, 8), (4, 9, 1)]


def randn(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def exactly(actual, expected):
    assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def reference(pre, k):
    """Sort whole rows, stably: value descending, then index ascending."""
    values, indices = pre.sort(dim=1, descending=True, stable=True)
    return values[:, :k], indices[:, :k]


def inputs():
    """Rows that a top-k may trip over."""
    integers = torch.randint(-3, 4, (40, 33), generator=torch.Generator().manual_seed(1)).double()
    return {
        "random": randn(6, 33),
        "integers": integers,
        "all equal": torch.full((3, 33), 2.0, dtype=torch.float64),
        "minus infinity": torch.full((2, 33), -torch.inf, dtype=torch.float64),
        "few finite": torch.where(torch.arange(33) % 11 == 3, 1.0, -torch.inf).expand(2, 33).double(),
        "infinity": torch.where(torch.arange(33) % 5 == 3, torch.inf, 0.0).expand(2, 33).double(),
        "signed zeros": torch.where(torch.arange(33) % 2 == 0, -0.0, 0.0).expand(2, 33).double(),
        "non-contiguous": integers.T[:, ::2],
        "expanded": randn(1, 33).expand(4, 33),
        "empty": torch.zeros(0, 33, dtype=torch.float64),
    }


def test_topk_by_hand():
    values, indices = topk(torch.tensor([[1.0, 3.0, 3.0, 2.0], [0.0, -1.0, 0.0, 0.0]]), 2)
    exactly(values, torch.tensor([[3.0, 3.0], [0.0, 0.0]]))
    exactly(indices, torch.tensor([[1, 2], [0, 2]]))


@pytest.mark.parametrize(("row", "col", "k"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_topk_keeps_the_largest(row, col, k, dtype):
    pre = randn(row, col).to(dtype)
    values, indices = topk(pre, k)
    exactly(values, reference(pre, k)[0])
    exactly(values, pre.gather(1, indices))
    assert all(len(set(row)) == k for row in indices.tolist())
    dropped = pre.scatter(1, indices, -torch.inf)
    assert (values[:, -1:] >= dropped).all()


@pytest.mark.parametrize("name", inputs())
@pytest.mark.parametrize("k", [1, 2, 5, 16])
def test_ties_go_to_the_lowest_index(name, k):
    pre = inputs()[name]
    values, indices = topk(pre, k)
    exactly(values, reference(pre, k)[0])
    exactly(indices, reference(pre, k)[1])


def test_k_equal_to_the_width_sorts_the_row():
    pre = inputs()["integers"]
    exactly(topk(pre, 33)[1], reference(pre, 33)[1])


@pytest.mark.parametrize("k", [1, 3, 4, 6])
def test_nan_shows_in_its_row_and_in_no_other(k):
    pre = randn(4, 9)
    pre[1, [2, 4, 7]] = torch.nan
    pre[2] = torch.nan
    values, indices = topk(pre, k)
    exactly(values, reference(pre, k)[0])
    exactly(indices, reference(pre, k)[1])
    assert values[1].isnan().sum() == min(k, 3)
    assert values[[0, 3]].isfinite().all()


@pytest.mark.parametrize("k", [-1, 0, 34])
def test_k_outside_the_width_is_an_error(k):
    with pytest.raises(ValueError, match=f"got {k}"):
        topk(inputs()["random"], k)


def test_topk_passes_the_gradient_to_what_it_kept():
    pre = randn(3, 7).requires_grad_()
    torch.autograd.gradcheck(lambda pre: topk(pre, 3)[0], pre)
    values, indices = topk(pre, 3)
    cotangent = randn(3, 3, seed=1)
    values.backward(cotangent)
    exactly(pre.grad, torch.zeros(3, 7, dtype=torch.float64).scatter(1, indices, cotangent))


@pytest.mark.parametrize(("token", "d", "latent", "k"), [(1, 1, 1, 1), (5, 3, 17, 4), (4, 6, 8, 8), (0, 3, 5, 2)])
def test_encode_is_the_dense_encoder_cut_to_k(token, d, latent, k):
    x, W_enc, b_enc = randn(token, d), randn(latent, d, seed=1), randn(latent, seed=2)
    values, indices = encode_topk(x, W_enc, b_enc, k)
    kept, where = reference(torch.einsum("td,ld->tl", x, W_enc) + b_enc, k)
    assert_close(values, kept.relu(), rtol=1e-12, atol=1e-12)
    exactly(indices, where)


def test_encode_by_hand():
    W_enc = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 1.0]])
    values, indices = encode_topk(torch.tensor([[2.0, -1.0]]), W_enc, torch.tensor([0.0, 0.5, 0.0, 0.25]), 3)
    exactly(values, torch.tensor([[2.0, 1.25, 0.0]]))  # pre-activations 2, -0.5, -2, 1.25
    exactly(indices, torch.tensor([[0, 3, 1]]))


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_encode_reaches_every_input(wanted):
    inputs = [randn(5, 3), randn(11, 3, seed=1), randn(11, seed=2)]
    inputs[wanted].requires_grad_()
    torch.autograd.gradcheck(lambda *inputs: encode_topk(*inputs, 4)[0], inputs)


def test_fewer_than_k_positives_leave_empty_slots_without_gradient():
    x, b_enc = torch.ones(2, 1, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    W_enc = torch.tensor([[1.0], [-1], [-2], [2], [-3], [0]], dtype=torch.float64)
    for tensor in (x, W_enc, b_enc):
        tensor.requires_grad_()
    values, indices = encode_topk(x, W_enc, b_enc, 4)
    exactly(values.detach(), torch.tensor([[2.0, 1, 0, 0]] * 2, dtype=torch.float64))
    exactly(indices, torch.tensor([[3, 0, 5, 1]] * 2))
    values.sum().backward()
    exactly(b_enc.grad, torch.tensor([2.0, 0, 0, 2, 0, 0], dtype=torch.float64))
    exactly(W_enc.grad[:, 0], b_enc.grad)
    exactly(x.grad, torch.full((2, 1), 3.0, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_inputs_are_computed_in_float32(dtype):
    x, W_enc, b_enc, W_dec = (randn(*shape).to(dtype) for shape in [(4, 16), (32, 16), (32,), (32, 16)])
    values, indices = encode_topk(x, W_enc, b_enc, 5)
    assert values.dtype == torch.float32
    full = encode_topk(x.float(), W_enc.float(), b_enc.float(), 5)
    exactly(values, full[0])
    exactly(indices, full[1])
    exactly(decode(values, indices, W_dec), decode(values, indices, W_dec.float()))
    rounded = decode(values.to(dtype), indices, W_dec)
    assert rounded.dtype == dtype
    exactly(rounded, decode(values.to(dtype).float(), indices, W_dec.float()).to(dtype))
