import pytest
import torch
from torch.testing import assert_close
from unweave.kernels import decode


def codes(token, k, latent, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(token, k, generator=generator, dtype=torch.float64)
    return values, torch.randint(0, latent, (token, k), generator=generator)


def dense(values, indices, latent):
    out = torch.zeros(len(values), latent, dtype=values.dtype)
    for t, j in torch.cartesian_prod(torch.arange(values.shape[0]), torch.arange(values.shape[1])).tolist():
        out[t, indices[t, j]] += values[t, j]
    return out


@pytest.mark.parametrize(("token", "k", "latent", "d"), [(1, 1, 1, 1), (5, 4, 9, 3), (33, 7, 129, 17), (0, 3, 5, 4)])
def test_decode_is_dense_codes_times_the_dictionary(token, k, latent, d):
    values, indices = codes(token, k, latent)
    W_dec = torch.randn(latent, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert_close(decode(values, indices, W_dec), dense(values, indices, latent) @ W_dec, rtol=1e-12, atol=1e-12)


def test_decode_by_hand_counts_a_repeated_index_twice_and_zero_not_at_all():
    W_dec = torch.tensor([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]])
    values, indices = torch.tensor([[2.0, 3.0, 0.0], [1.0, 1.0, -1.0]]), torch.tensor([[1, 1, 2], [0, 2, 1]])
    assert_close(decode(values, indices, W_dec), torch.tensor([[50.0, 100.0], [91.0, 182.0]]), rtol=0, atol=0)


def test_decode_reaches_values_and_dictionary():
    values, indices = codes(4, 3, 6)
    indices[0] = 2
    W_dec = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.autograd.gradcheck(decode, (values.requires_grad_(), indices, W_dec))
    torch.autograd.gradcheck(decode, (values.detach(), indices, W_dec.requires_grad_()))
    torch.autograd.gradcheck(decode, (values.detach().requires_grad_(), indices, W_dec))


def test_decode_reads_non_contiguous_inputs():
    values, indices = codes(6, 8, 9)
    W_dec = torch.randn(5, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64).T
    assert_close(
        decode(values[::2, ::3], indices[::2, ::3], W_dec), dense(values[::2, ::3], indices[::2, ::3], 9) @ W_dec,
        rtol=1e-12, atol=1e-12,
    )  # fmt: skip


@pytest.mark.parametrize("bad", [-1, 6])
def test_an_index_outside_the_dictionary_is_an_error(bad):
    values, indices = codes(3, 2, 6)
    indices[1, 1] = bad
    with pytest.raises(ValueError, match=r"latent indices in \[0, 6\)"):
        decode(values, indices, torch.zeros(6, 2, dtype=torch.float64))
