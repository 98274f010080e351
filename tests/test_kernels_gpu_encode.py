"""The Triton encoder family in Triton's interpreter (conftest.py) or on a GPU, against plain torch and float64.

Where data are small integers every sum is exact, so pre-activations, ties and indices must equal the definition's bit for
bit; on other data only the properties of a top k can be asked.
"""

import pytest
import torch
from kernel_tools import DEVICE, exactly, integers, poison_memory, randn
from torch.testing import assert_close
from unweave.kernels import reference

pytest.importorskip("triton")
from unweave.kernels.gpu import merge
from unweave.kernels.gpu.batch import encode_batch_topk
from unweave.kernels.gpu.encode import encode_threshold, encode_topk, topk

GROUPS = 12  # groups of 32 that a row of 257 to 384 latents has


def case(token, d, latent, stack=1, make=integers):
    return make(token, d, seed=1), make(stack, latent, d, seed=2), make(stack, latent, seed=3)


def same_codes(actual, expected):
    """Equal, but for the indices of a token that has more than fits: there they only name latents."""
    (values, indices, count), (want, named, number) = actual, expected
    fits = (number <= want.shape[2])[:, :, None]
    exactly((values, indices * fits, count), (want, named * fits, number))


def of_pre(pre):
    """Inputs whose pre-activations are exactly these [token latent], which must be finite."""
    return torch.eye(len(pre), device=DEVICE), pre.T[None].contiguous(), torch.zeros(1, pre.shape[1], device=DEVICE)


def in_one_group(latent, k):
    """Rows of zeros but for k latents of one group, the later the larger."""
    pre = torch.zeros(2, latent, device=DEVICE)
    for row, group in enumerate((0, 5)):
        pre[row, group + GROUPS * torch.arange(k)] = 1.0 + torch.arange(k, device=DEVICE)
    return pre


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    check = poison_memory(monkeypatch)
    yield
    check()


SHAPES = [(5, 7, 130, 4), (3, 33, 300, 17), (1, 1, 1, 1), (2, 200, 100, 100), (3, 16, 1000, 1), (9, 5, 129, 2)]


@pytest.mark.parametrize(("token", "d", "latent", "k"), SHAPES)
def test_ties_go_to_the_lowest_latent(token, d, latent, k):
    inputs = case(token, d, latent)
    exactly(encode_topk(*inputs, k), reference.encode_topk(*inputs, k))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kept_is_largest_and_is_what_float64_says(dtype):
    x, W, b = (part.to(dtype) for part in case(3, 65, 517, make=randn))
    values, indices = encode_topk(x, W, b, 24)
    truth = torch.addmm(b[0].double(), x.double(), W[0].double().T)
    assert values.dtype == torch.float32 and not values.isnan().any()
    error = 4e-7 * (x.double().norm(dim=1, keepdim=True) * W[0].double().norm(dim=1).max() + b.double().abs().max())
    assert ((values[0] - truth.gather(1, indices[0])).abs() <= error).all()
    assert all(len(set(row)) == 24 for row in indices[0].tolist())
    assert (values[0, :, :-1] >= values[0, :, 1:]).all()
    dropped = truth.scatter(1, indices[0], -torch.inf).amax(1, keepdim=True)
    assert (values[0, :, -1:] + error >= dropped).all()


@pytest.mark.parametrize("k", [3, 7, 25])
def test_a_crowded_group_is_repaired(k):
    inputs = of_pre(in_one_group(300, 25))
    exactly(encode_topk(*inputs, k), reference.encode_topk(*inputs, k))


@pytest.mark.parametrize(
    "pre",
    [
        torch.zeros(2, 200),
        torch.full((2, 200), -3.0),
        torch.where(torch.arange(200) % 67 == 5, 2.0, -1.0).expand(2, -1),
    ],
    ids=["all zero", "all negative", "fewer than k positive"],
)
def test_equal_rows_keep_the_first_latents(pre):
    inputs = of_pre(pre.to(DEVICE))
    exactly(encode_topk(*inputs, 9), reference.encode_topk(*inputs, 9))


def test_infinity_and_signed_zero_are_ordered():
    pre = integers(3, 150)
    pre[0, ::7], pre[1, ::5], pre[2] = torch.inf, -torch.inf, torch.where(torch.arange(150) % 2 == 0, -0.0, 0.0)
    pre[1, 100:] = -torch.inf
    for k in (4, 100):
        exactly(topk(pre, k), reference.topk(pre, k))
    b = torch.where(torch.arange(150, device=DEVICE) % 3 == 0, -torch.inf, 1.0)[None]
    x, W = torch.zeros(1, 3, device=DEVICE), torch.zeros(1, 150, 3, device=DEVICE)
    exactly(encode_topk(x, W, b, 120), reference.encode_topk(x, W, b, 120))


def test_nan_is_largest_and_stays_in_its_row():
    x, W, b = case(3, 9, 140)
    x[1, 3] = torch.nan
    exactly(encode_topk(x, W, b, 5), reference.encode_topk(x, W, b, 5))


def test_a_nan_encoder_row_comes_first_for_every_token():
    x, W, b = case(2, 9, 140)
    W[0, 77, 2] = W[0, 78, 0] = -torch.nan
    values, indices = encode_topk(x, W, b, 5)
    exactly((values, indices), reference.encode_topk(x, W, b, 5))
    assert (indices[0, :, :2] == torch.tensor([77, 78], device=DEVICE)).all()


def test_views_are_read_where_they_are():
    x, W, b = integers(4, 14, seed=1)[::2, ::2], integers(2, 7, 270, seed=2)[1:, :, ::2].mT, integers(1, 270)[:, ::2]
    exactly(encode_topk(x, W, b, 6), reference.encode_topk(x, W, b, 6))
    x, W, b = integers(4, 40, seed=1)[:, 4:36], integers(2, 270, 48, seed=2)[:, :, 3:35], integers(2, 400)[:, :270]
    exactly(encode_topk(x, W, b, 6), reference.encode_topk(x, W, b, 6))
    threshold = integers(2, 400, seed=4)[:, :270]
    same_codes(encode_threshold(x, W, b, threshold, 300), reference.encode_threshold(x, W, b, threshold, 300))
    pre = integers(70, 8).T[::3]
    exactly(topk(pre, 4), reference.topk(pre, 4))


def test_a_stack_is_its_dictionaries_one_by_one():
    x, W, b = case(2, 11, 200, stack=2, make=randn)
    values, indices = encode_topk(x, W, b, 13)
    for s in range(2):
        alone = encode_topk(x, W[s : s + 1], b[s : s + 1], 13)
        exactly((values[s], indices[s]), (alone[0][0], alone[1][0]))
    exactly((values, indices), encode_topk(x, W, b, 13))


def test_no_tokens_give_no_codes():
    x, W, b = case(0, 4, 40, stack=2)
    assert [part.shape for part in encode_topk(x, W, b, 3)] == [(2, 0, 3)] * 2
    assert [part.shape for part in encode_threshold(x, W, b, b, 3)] == [(2, 0, 3), (2, 0, 3), (2, 0)]
    assert [part.shape for part in encode_batch_topk(x, W, b, 2, 3)] == [(2, 0, 3), (2, 0, 3), (2, 0)]


@pytest.mark.parametrize(
    ("latent", "k", "dtype"),
    [(1, 1, torch.float32), (50, 50, torch.bfloat16), (300, 11, torch.float32), (300, 11, torch.float16)],
)
def test_topk_of_given_values_is_a_stable_sort(dtype, latent, k):
    pre = torch.cat([integers(2, latent), randn(1, latent)]).to(dtype)
    pre[1, latent // 2] = torch.nan
    exactly(topk(pre, k), reference.topk(pre, k))


@pytest.mark.parametrize(("latent", "k"), [(300, 150), (9_000, 20), (70_000, 5), (140_000, 33)])
def test_every_width_of_row_and_list_has_its_kernel(latent, k):
    pre = integers(1, latent)
    exactly(topk(pre, k), reference.topk(pre, k))


def test_long_lists_are_completed():
    inputs = case(1, 2, 1030)
    exactly(encode_topk(*inputs, 1025), reference.encode_topk(*inputs, 1025))


@pytest.mark.parametrize(("above", "capacity"), [(0.0, 300), (0.0, -1), (9.0, 4), (40.0, 3)])
def test_threshold_keeps_what_is_above_and_counts_it(above, capacity):
    x, W, b = case(2, 5, 300, stack=2)
    threshold = integers(2, 300, seed=5) + above
    expected = reference.encode_threshold(x, W, b, threshold, capacity)
    same_codes(encode_threshold(x, W, b, threshold, capacity), expected)


def test_threshold_lets_nan_through_and_cuts_what_is_equal():
    x, W, b = case(3, 4, 50)
    x[1, 0], threshold = torch.nan, torch.full((1, 50), 3.0, device=DEVICE)
    threshold[0, 5], threshold[0, 6], threshold[0, 7] = torch.nan, torch.inf, -torch.inf
    same_codes(encode_threshold(x, W, b, threshold, 50), reference.encode_threshold(x, W, b, threshold, 50))


@pytest.mark.parametrize(
    ("token", "d", "latent", "k", "stack", "capacity"),
    [(2, 3, 140, 4, 2, -1), (3, 3, 140, 4, 1, 5), (2, 2, 40, 40, 1, -1), (4, 7, 65, 1, 1, 2)],
)
def test_batch_topk_keeps_the_largest_of_the_batch(token, d, latent, k, stack, capacity):
    inputs = case(token, d, latent, stack)
    same_codes(encode_batch_topk(*inputs, k, capacity), reference.encode_batch_topk(*inputs, k, capacity))


@pytest.mark.parametrize("k", [2, 9])
def test_batch_topk_repairs_crowded_groups_before_the_threshold_is_final(k):
    inputs = of_pre(torch.cat([in_one_group(300, 25), integers(2, 300)]))
    same_codes(encode_batch_topk(*inputs, k, 300), reference.encode_batch_topk(*inputs, k, 300))


def test_batch_topk_takes_ties_from_the_first_tokens():
    inputs = of_pre(torch.ones(3, 90, device=DEVICE))
    same_codes(encode_batch_topk(*inputs, 40, 90), reference.encode_batch_topk(*inputs, 40, 90))


def test_batch_topk_of_random_values_keeps_as_many_as_it_should():
    x, W, b = case(3, 20, 260, make=randn)
    values, indices, count = encode_batch_topk(x, W, b, 30, 260)
    truth = torch.addmm(b[0].double(), x.double(), W[0].double().T)
    kept = torch.arange(260, device=DEVICE) < count[0, :, None]
    assert count.sum() == 90
    assert_close(values[0][kept].double(), truth.gather(1, indices[0])[kept], rtol=1e-5, atol=1e-5)
    assert (values[0][kept].min() + 1e-5 >= truth.flatten().topk(90).values[-1]).all()
    exactly((values, indices, count), encode_batch_topk(x, W, b, 30, 260))


@pytest.mark.parametrize(("length", "k"), [(9, 4), (1500, 64), (2051, 700), (40, 33)])
def test_lists_of_segments_are_merged_to_their_largest(length, k):
    entries = torch.stack(
        [torch.randperm(2 * length, generator=torch.Generator().manual_seed(s))[:length] for s in (1, 2)]
    )
    entries = (entries.to(DEVICE) - length // 2) * 2**34
    entries[1, k // 2 :] = -(2**63)
    merged = merge._first(entries, k)
    exactly([merged.sort(dim=1).values], [entries.sort(dim=1).values[:, -k:]])
