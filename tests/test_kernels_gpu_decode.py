"""Triton's decode, contract and weight gradients in the interpreter (conftest.py) or on a GPU, against plain torch and float64."""

import pytest
import torch
from kernel_tools import DEVICE, exactly, inside_nan, integers, poison_memory, randn
from torch.testing import assert_close
from unweave.kernels import reference
from unweave.kernels.testing import assert_as_accurate_as

pytest.importorskip("triton")
from unweave.kernels import gpu
from unweave.kernels.gpu import gradient, rows

SHAPES = [(1, 1, 1, 1), (5, 3, 9, 7), (3, 9, 40, 65), (2, 17, 33, 300), (4, 8, 200, 256), (3, 2, 5, 64), (2, 1, 6, 257)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    check = poison_memory(monkeypatch)
    yield
    check()


@pytest.fixture
def short(monkeypatch):
    """Segments of four slots, so that small data have many."""
    monkeypatch.setattr(gradient, "SEGMENT", 4)


def named(token, k, latent, seed=5):
    """Latents of each slot; repeats within a token are possible."""
    return torch.randint(0, latent, (token, k), generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def case(token, k, latent, d, make=integers):
    """values, indices, rows of the tokens, rows of the latents."""
    return make(token, k, seed=1), named(token, k, latent), make(token, d, seed=2), make(latent, d, seed=3)


@pytest.mark.parametrize(("token", "k", "latent", "d"), SHAPES)
def test_integers_come_out_exactly(token, k, latent, d):
    values, indices, x, W = case(token, k, latent, d)
    exactly([gpu.decode(values, indices, W)], [reference.decode(values, indices, W)])
    exactly([gpu.contract(x, indices, W)], [reference.contract(x, indices, W)])
    expected = reference.weight_gradient(values, indices, x, latent)
    exactly([gpu.weight_gradient(values, indices, x, latent)], [expected])


@pytest.mark.parametrize("dtype", DTYPES)
def test_as_accurate_as_plain_torch(dtype, short):
    values, indices, x, W = (
        part.to(dtype) if part.is_floating_point() else part for part in case(6, 13, 30, 333, randn)
    )
    v, r, w = values.double(), x.double(), W.double()
    for name, ours, plain, truth in (
        (
            "decode",
            gpu.decode(values, indices, W),
            reference.decode(values, indices, W),
            reference.decode(v, indices, w),
        ),
        ("contract", gpu.contract(x, indices, W), reference.contract(x, indices, W), reference.contract(r, indices, w)),
        (
            "weight_gradient",
            gpu.weight_gradient(values, indices, x, 30),
            reference.weight_gradient(values, indices, x, 30),
            reference.weight_gradient(v, indices, r, 30),
        ),
    ):
        assert ours.dtype == plain.dtype
        assert_as_accurate_as(ours, plain, truth, name)


def test_values_and_matrix_may_differ_in_type():
    values, indices, x, W = case(3, 4, 11, 70)
    for narrow in (torch.bfloat16, torch.float16):
        exactly([gpu.decode(values, indices, W.to(narrow))], [reference.decode(values, indices, W)])
        exactly([gpu.decode(values.to(narrow), indices, W)], [reference.decode(values, indices, W).to(narrow)])
        exactly(
            [gpu.weight_gradient(values, indices, x.to(narrow), 11)],
            [reference.weight_gradient(values, indices, x, 11)],
        )
        exactly([gpu.contract(x.to(narrow), indices, W)], [reference.contract(x, indices, W)])


def test_indices_may_be_32_bit():
    values, indices, x, W = case(3, 4, 11, 70)
    exactly([gpu.decode(values, indices.int(), W)], [reference.decode(values, indices, W)])
    exactly([gpu.contract(x, indices.int(), W)], [reference.contract(x, indices, W)])
    exactly([gpu.weight_gradient(values, indices.int(), x, 11)], [reference.weight_gradient(values, indices, x, 11)])


def test_float64_is_computed_in_float64():
    values, indices, x, W = (part.double() if part.is_floating_point() else part for part in case(3, 4, 11, 20, randn))
    exactly([gpu.decode(values, indices, W)], [reference.decode(values, indices, W)])
    exactly([gpu.contract(x, indices, W)], [reference.contract(x, indices, W)])
    exactly([gpu.weight_gradient(values, indices, x, 11)], [reference.weight_gradient(values, indices, x, 11)])


def test_nothing_beside_a_view_is_read(short):
    values, indices, x, W = case(5, 6, 12, 90)
    v, r, w = inside_nan(values), inside_nan(x), inside_nan(W)
    i = inside_nan(indices.double()).nan_to_num(nan=10**6).long()
    assert not w.is_contiguous() and w.stride(1) == 1
    exactly([gpu.decode(v, i, w)], [reference.decode(values, indices, W)])
    exactly([gpu.contract(r, i, w)], [reference.contract(x, indices, W)])
    exactly([gpu.weight_gradient(v, i, r, 12)], [reference.weight_gradient(values, indices, x, 12)])
    exactly(gpu.sae_gradient(r, r, v, i, w), reference.sae_gradient(x, x, values, indices, W))


def test_transposed_matrices_are_read_in_their_order():
    values, indices, x, W = case(5, 6, 12, 12)
    exactly([gpu.decode(values, indices, W.T)], [reference.decode(values, indices, W.T)])
    exactly([gpu.contract(x[:, ::2], indices, W.T[:, ::2])], [reference.contract(x[:, ::2], indices, W.T[:, ::2])])


@pytest.mark.parametrize("count", [1, 4, 5, 8, 9, 33])
def test_a_hot_latent_is_cut_into_segments(count, short):
    indices = torch.arange(40, device=DEVICE)[:, None] % 3 + 4
    indices[:count] = 2
    values, x = integers(40, 1, seed=1, low=1), integers(40, 70, seed=2)
    assert gradient.segments(indices, 9).many[2] == (count - 1) // 4
    exactly([gpu.weight_gradient(values, indices, x, 9)], [reference.weight_gradient(values, indices, x, 9)])


def test_every_slot_is_in_one_segment_of_its_latent(short):
    indices = torch.cat([named(9, 5, 6), torch.full((9, 5), 3, device=DEVICE)], 1)
    parts = gradient.segments(indices, 7)
    seen = []
    for begin, end, latent in zip(parts.begin.tolist(), parts.end.tolist(), parts.latent.tolist(), strict=True):
        slots = parts.order[begin:end]
        assert len(slots) <= 4
        assert (indices.flatten()[slots] == latent).all()
        assert (parts.tokens[begin:end] == slots // 10).all()
        assert (slots.diff() > 0).all()
        seen += slots.tolist()
    assert sorted(seen) == list(range(90))


def test_latents_that_nothing_names_get_zero(short):
    values, x = integers(4, 6, seed=1, low=1), integers(4, 70, seed=2)
    out = gpu.weight_gradient(values, torch.full((4, 6), 7, device=DEVICE), x, 12)
    assert (out[torch.arange(12) != 7] == 0).all() and (out[7] != 0).any()


def test_the_same_bits_every_time(short):
    values, indices, x, W = case(7, 9, 10, 130, randn)
    first = gpu.weight_gradient(values, indices, x, 10), *gpu.sae_gradient(x, x, values, indices, W)
    again = gpu.weight_gradient(values, indices, x, 10), *gpu.sae_gradient(x, x, values, indices, W)
    exactly(first, again)


def test_empty_slots_add_nothing_even_where_rows_are_not_numbers():
    values, indices, x, W = case(4, 3, 8, 20)
    values[:, 2], indices[:, 2], indices[:, :2], W[0], x[1], values[1] = 0, 0, 3, torch.nan, torch.nan, 0
    assert not gpu.decode(values, indices, W).isnan().any()
    assert not gpu.weight_gradient(values, indices, x, 8).isnan().any()
    assert not any(part.isnan().any() for part in gpu.sae_gradient(x, x, values, indices, W))


def test_a_nan_value_shows_in_its_token_and_its_latent_alone():
    values, indices, x, W = case(4, 3, 8, 20)
    values[2, 1], indices[2] = torch.nan, torch.tensor([1, 5, 6], device=DEVICE)
    assert (gpu.decode(values, indices, W).isnan().all(1).cpu() == torch.tensor([False, False, True, False])).all()
    assert (gpu.weight_gradient(values, indices, x, 8).isnan().all(1).cpu() == (torch.arange(8) == 5)).all()


@pytest.mark.parametrize(("token", "k", "d"), [(0, 3, 5), (3, 0, 5), (3, 2, 0), (0, 0, 0)])
def test_nothing_in_gives_zeros_out(token, k, d):
    values, indices, x, W = case(token, k, 4, d)
    exactly([gpu.decode(values, indices, W)], [torch.zeros(token, d, device=DEVICE)])
    exactly([gpu.contract(x, indices, W)], [torch.zeros(token, k, device=DEVICE)])
    exactly([gpu.weight_gradient(values, indices, x, 4)], [torch.zeros(4, d, device=DEVICE)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strips_of_a_high_matrix_add_up(dtype, monkeypatch):
    _, indices, x, W = case(3, 9, 21, 700)
    monkeypatch.setattr(rows, "CACHE", 21 * W.to(dtype).element_size() * 300)
    assert rows.strip_width(W.to(dtype)) == 256
    exactly([gpu.contract(x, indices, W.to(dtype))], [reference.contract(x, indices, W)])


@pytest.mark.parametrize(("token", "k", "latent", "d"), [(1, 1, 1, 1), (5, 7, 6, 70), (3, 4, 5, 1500), (2, 3, 4, 2100)])
def test_sae_gradient_is_the_four_in_one_pass(token, k, latent, d, short):
    values, indices, x, W = case(token, k, latent, d)
    g = integers(token, d, seed=7, low=-1, high=2)
    exactly(gpu.sae_gradient(g, x, values, indices, W), reference.sae_gradient(g, x, values, indices, W))


@pytest.mark.parametrize(("d", "d_in"), [(20, 70), (70, 20), (1030, 9)])
def test_sae_gradient_of_a_transcoder_has_two_widths(d, d_in, short):
    values, indices, x, W = case(5, 3, 4, d_in)
    g, W = integers(5, d, seed=7), integers(4, d, seed=8)
    exactly(gpu.sae_gradient(g, x, values, indices, W), reference.sae_gradient(g, x, values, indices, W))


def test_sae_gradient_of_wide_rows_is_made_op_by_op():
    values, indices, x, W = case(2, 2, 3, 4100)
    exactly(gpu.sae_gradient(x, x, values, indices, W), reference.sae_gradient(x, x, values, indices, W))


@pytest.mark.parametrize("dtype", DTYPES)
def test_sae_gradient_is_as_accurate_as_plain_torch(dtype, short):
    values, indices, x, W = case(6, 5, 7, 150, randn)
    values[::2, ::2] = 0
    g, x, W = (part.to(dtype) for part in (randn(6, 150, seed=9), x, W))
    truth = reference.sae_gradient(g.double(), x.double(), values.double(), indices, W.double())
    names = ("values", "W_dec", "W_enc", "b_enc")
    for name, *parts in zip(
        names,
        gpu.sae_gradient(g, x, values, indices, W),
        reference.sae_gradient(g, x, values, indices, W),
        truth,
        strict=True,
    ):
        assert_as_accurate_as(*parts, name)


def test_sae_gradient_is_the_derivative_of_the_autoencoder():
    from unweave.kernels import decode, encode_topk

    x, W_enc, b_enc, W_dec, g = (
        randn(6, 20, seed=1),
        randn(30, 20, seed=2),
        randn(30, seed=3) - 4,
        randn(30, 20, seed=4),
        randn(6, 20),
    )
    parameters = [part.double().requires_grad_() for part in (W_enc, b_enc, W_dec)]
    values, indices = encode_topk(x.double(), *parameters[:2], 5)
    assert (values == 0).any() and (values > 0).any()
    decode(values, indices, parameters[2]).backward(g.double())
    _, d_dec, d_enc, d_bias = gpu.sae_gradient(g, x, values.detach().float(), indices, W_dec)
    for ours, theirs in zip((d_enc, d_bias, d_dec), parameters, strict=True):
        assert_close(ours.double(), theirs.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(DEVICE == "cuda", reason="the memory is a sparse file")
def test_rows_past_two_to_the_31_elements_are_found(tmp_path):
    memory = torch.from_file(str(tmp_path / "sparse"), shared=True, size=2**31 + 64, dtype=torch.bfloat16)
    far, near = memory.as_strided((3, 48), (2**30, 1)), integers(3, 48, seed=3)
    far.copy_(near)
    values, indices = integers(3, 4, seed=1), torch.tensor([[2, 1, 0, 2], [2, 2, 2, 2], [1, 0, 2, 1]])
    exactly([gpu.decode(values, indices, far)], [reference.decode(values, indices, near)])
    exactly([gpu.contract(far, indices, far)], [reference.contract(near, indices, near)])
    exactly([gpu.weight_gradient(values, indices, far, 3)], [reference.weight_gradient(values, indices, near, 3)])
    exactly(gpu.sae_gradient(far, far, values, indices, far), reference.sae_gradient(near, near, values, indices, near))
    b = integers(1, 3)
    exactly(gpu.encode_topk(far, far[None], b, 2), reference.encode_topk(near, near[None], b, 2))


def test_public_ops_take_this_path_and_differentiate(monkeypatch):
    from unweave.kernels import contract, decode, weight_gradient

    values, indices, x, W = case(4, 5, 9, 70)
    g = integers(4, 70, seed=8)

    def results():
        leaves = [part.clone().requires_grad_() for part in (values, x, W)]
        v, r, w = leaves
        total = (
            (decode(v, indices, w) * g).sum() + contract(r, indices, w).sum() + weight_gradient(v, indices, r, 9).sum()
        )
        return total, *torch.autograd.grad(total, leaves)

    monkeypatch.setenv("UNWEAVE_KERNELS", "reference")
    expected = results()
    monkeypatch.setenv("UNWEAVE_KERNELS", "triton")
    calls = []
    monkeypatch.setattr(gpu, "decode", lambda *args: calls.append(args) or rows.decode(*args))
    exactly(results(), expected)
    assert calls


@pytest.mark.skipif(DEVICE == "cuda", reason="a check on the device would synchronise")
def test_an_index_outside_is_an_error_in_the_interpreter():
    values, indices, x, W = case(3, 2, 6, 5)
    indices[1, 1] = 6
    for call in (
        lambda: gpu.decode(values, indices, W),
        lambda: gpu.contract(x, indices, W),
        lambda: gpu.weight_gradient(values, indices, x, 6),
        lambda: gpu.sae_gradient(x, x, values, indices, W),
    ):
        with pytest.raises(ValueError, match=r"latent indices in \[0, 6\)"):
            call()
