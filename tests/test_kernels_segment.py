"""Counts, histograms and top examples of each latent: every path against a loop."""

import importlib.util
import math

import pytest
import torch
from kernel_tools import DEVICE, exactly, poison_memory
from unweave.kernels import segment

TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
PATHS = ["reference", "cpu", pytest.param("triton", marks=TRITON)]
HALF_OCTAVES = 2.0 ** (-2 + 0.5 * torch.arange(9))


@pytest.fixture(autouse=True, params=PATHS)
def path(request, monkeypatch):
    monkeypatch.setenv("UNWEAVE_KERNELS", request.param)
    check = poison_memory(monkeypatch)
    yield request.param
    check()


def loop(values, indices, latents, edges, examples):
    """The definition, slot by slot."""
    bins = len(edges) - 1
    found = [[] for _ in range(latents)]
    histogram = torch.zeros(latents, bins, dtype=torch.int32)
    for token, (row, named) in enumerate(zip(values.tolist(), indices.tolist(), strict=True)):
        for value, latent in zip(row, named, strict=True):
            if value != 0:
                found[latent].append((value, token))
                below = sum(not value < edge for edge in edges[1:-1].tolist())
                histogram[latent, below] += 1
    top_values, top_tokens = torch.zeros(latents, examples, dtype=values.dtype), torch.full((latents, examples), -1)
    for latent, seen in enumerate(found):
        best = sorted(seen, key=lambda pair: (not math.isnan(pair[0]), -pair[0], pair[1]))[:examples]
        for rank, (value, token) in enumerate(best):
            top_values[latent, rank], top_tokens[latent, rank] = value, token
    return torch.tensor([len(seen) for seen in found]), histogram, top_values, top_tokens


def codes(token, k, latent, dtype=torch.float32, seed=0):
    """Values on a coarse grid, so that many are equal, are at an edge, or are 0."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-2, 12, (token, k), generator=generator) / 4
    return values.to(dtype), torch.randint(0, latent, (token, k), generator=generator)


def agrees(values, indices, latents, edges, examples):
    device = DEVICE if values.is_floating_point() else "cpu"
    ours = segment(values.to(device), indices.to(device), latents, edges.to(device), examples)
    exactly([part.cpu() for part in ours], loop(values, indices, latents, edges, examples))


@pytest.mark.parametrize(
    ("token", "k", "latent", "examples"),
    [(1, 1, 1, 1), (7, 3, 5, 4), (40, 5, 3, 7), (9, 6, 40, 2), (3, 2, 9, 50), (0, 3, 4, 2), (4, 0, 4, 2)],
)
def test_agrees_with_the_loop(token, k, latent, examples):
    agrees(*codes(token, k, latent), latent, HALF_OCTAVES, examples)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_values_keep_their_type(dtype):
    agrees(*codes(8, 4, 5, dtype), 5, HALF_OCTAVES.to(dtype), 3)


def test_by_hand():
    values, indices = torch.tensor([[2.0, 1.0], [3.0, 0.0]]), torch.tensor([[0, 1], [0, 0]])
    counts, histogram, top_values, top_tokens = segment(
        values.to(DEVICE), indices.to(DEVICE), 2, torch.tensor([0.0, 1.5, 9.0], device=DEVICE), 1
    )
    assert counts.tolist() == [2, 1]
    assert histogram.tolist() == [[0, 2], [1, 0]]
    assert top_values.tolist() == [[3.0], [1.0]]
    assert top_tokens.tolist() == [[1], [0]]


def test_equal_values_go_to_the_lowest_token():
    values, indices = torch.ones(50, 2), torch.tensor([3, 1]).expand(50, 2)
    top_tokens = segment(
        values.to(DEVICE), indices.to(DEVICE), 5, torch.tensor([0.0, 1.0], device=DEVICE), 9
    ).top_tokens
    assert top_tokens[3].tolist() == top_tokens[1].tolist() == list(range(9))


def test_the_outer_bins_are_open_and_edges_belong_to_the_bin_above():
    values = torch.tensor([[-5.0, 1e-9, 1.0, 2.0, 1e30, torch.inf, -torch.inf]])
    indices = torch.zeros(1, 7, dtype=torch.int64)
    histogram = segment(
        values.to(DEVICE), indices.to(DEVICE), 1, torch.tensor([0.5, 1, 2, 4], device=DEVICE), 1
    ).histogram
    assert histogram.tolist() == [[3, 1, 3]]


def test_nan_is_largest_and_in_the_last_bin():
    values, indices = codes(9, 3, 2)
    values[4, 1], values[6, 0], indices[4, 1], indices[6, 0] = torch.nan, -torch.nan, 1, 1
    agrees(values, indices, 2, HALF_OCTAVES, 3)


def test_a_latent_of_every_token_and_more_bins_than_one_program_counts():
    values, indices = codes(100, 2, 3)
    indices[:, 0] = 2
    agrees(values, indices, 3, torch.linspace(-0.5, 2.8, 131), 40)


def test_views_are_read_where_they_are():
    values, indices = codes(8, 9, 4)
    agrees(values[::2, 1::3], indices[::2, 1::3], 4, HALF_OCTAVES, 3)
    agrees(values[:3].T, indices[:3].T, 4, HALF_OCTAVES[::2], 3)


def test_repeats_bit_for_bit_and_takes_32_bit_indices():
    values, indices = codes(30, 4, 6)
    call = lambda named: segment(values.to(DEVICE), named.to(DEVICE), 6, HALF_OCTAVES.to(DEVICE), 5)  # noqa: E731
    exactly(call(indices), call(indices))
    exactly(call(indices), call(indices.int()))


def test_the_shape_of_the_answer_is_known_without_computing():
    with torch._subclasses.FakeTensorMode():
        fake = segment(torch.empty(5, 3), torch.empty(5, 3, dtype=torch.int64), 7, torch.empty(4), 2)
    assert [tuple(part.shape) for part in fake] == [(7,), (7, 3), (7, 2), (7, 2)]
    assert [part.dtype for part in fake] == [torch.int64, torch.int32, torch.float32, torch.int64]


def test_what_cannot_be_is_an_error(path):
    values, indices = codes(4, 2, 3)
    with pytest.raises(ValueError, match="two or more edges"):
        segment(values, indices, 3, torch.ones(1), 2)
    with pytest.raises(ValueError, match="at least one example"):
        segment(values, indices, 3, HALF_OCTAVES, 0)
    if DEVICE == "cpu" and path != "reference":
        with pytest.raises(ValueError, match=r"latent indices in \[0, 2\)"):
            segment(values, indices, 2, HALF_OCTAVES, 1)
