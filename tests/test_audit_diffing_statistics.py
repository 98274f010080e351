"""Permutations, false discoveries and effect sizes: what they promise, on numbers whose answer is known."""

import itertools

import torch
from unweave.audit.diffing.statistics import LEAST_DOCUMENTS, benjamini_hochberg, differences, effect_sizes, sign_flip

FDR = 0.05


def noise(documents=30, latents=400, seed=0):
    """Differences that are as likely to be positive as negative."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(documents, latents, generator=generator, dtype=torch.float64)


def test_p_is_the_share_of_all_sign_flips_that_reach_the_sum():
    change = noise(9, 6) + torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.5])
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=9)), dtype=torch.float64)
    exact = ((signs @ change).abs() >= change.sum(0).abs() - 1e-9).double().mean(0)
    found = sign_flip(change, 0, draws=40_000, enough=10**9)
    assert (found - exact).abs().max() < 4 * (0.25 / 40_000) ** 0.5 + 1e-4


def test_stopping_early_says_the_same_as_running_on():
    change = noise(30, 50)
    early, late = sign_flip(change, 0, draws=20_000, enough=200), sign_flip(change, 1, draws=20_000, enough=10**9)
    assert ((early - late).abs() / late).max() < 0.35  # 200 of them: a relative error of 7 % each


def test_p_of_no_difference_is_uniform():
    p = sign_flip(noise(30, 4000), 0)
    for level in (0.05, 0.2, 0.5):
        assert abs(float((p <= level).double().mean()) - level) < 4 * (level * (1 - level) / 4000) ** 0.5 + 0.005


def test_discoveries_where_nothing_differs_come_at_the_stated_rate():
    runs = [bool((benjamini_hochberg(sign_flip(noise(seed=seed), seed)) <= FDR).any()) for seed in range(60)]
    assert sum(runs) <= 9  # of 60 runs 3 are expected to have any; 9 or more are one in 400


def test_a_few_that_differ_are_found_among_many_that_do_not():
    change = noise(30, 2000)
    change[:, :5] += 2.0
    found = (benjamini_hochberg(sign_flip(change, 0)) <= FDR).nonzero().squeeze(1).tolist()
    assert set(range(5)) <= set(found) and len(found) <= 8


def test_too_few_documents_with_a_difference_are_not_tested():
    change = torch.zeros(20, 2, dtype=torch.float64)
    change[: LEAST_DOCUMENTS - 1, 0], change[:LEAST_DOCUMENTS, 1] = 1.0, 1.0
    p = sign_flip(change, 0)
    assert p[0].isnan() and abs(float(p[1]) - 2.0 ** (1 - LEAST_DOCUMENTS)) < 0.01


def test_q_values_by_hand():
    p = torch.tensor([0.01, torch.nan, 0.04, 0.03, 0.5], dtype=torch.float64)
    # 0.01 * 4 / 1, then 0.03 * 4 / 2 = 0.06 which 0.04 * 4 / 3 = 0.0533 undercuts, then 0.5
    expected = torch.tensor([0.04, torch.nan, 0.16 / 3, 0.16 / 3, 0.5], dtype=torch.float64)
    torch.testing.assert_close(benjamini_hochberg(p), expected, equal_nan=True)


def test_effect_size_by_hand():
    a, b = torch.tensor([[0.0], [2.0], [4.0]]), torch.tensor([[3.0], [5.0], [7.0]])
    sizes = effect_sizes(a, b, 0)
    torch.testing.assert_close(sizes.d, torch.tensor([3 / 2], dtype=torch.float64))  # both variances are 4


def test_the_interval_of_the_effect_size_covers_the_truth_and_no_difference_is_zero():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(60, 300, generator=generator, dtype=torch.float64) for _ in range(2))
    sizes = effect_sizes(a, b + 1.0, 0)
    assert ((sizes.low <= 1) & (sizes.high >= 1)).double().mean() > 0.88
    assert bool((effect_sizes(a, a, 0).d == 0).all())


def test_rounding_is_no_difference():
    a = 5 + noise(20, 3)
    b = a * (1 + 1e-7)
    b[:, 2] += 0.01
    assert sign_flip(differences(a, b), 0).isfinite().tolist() == [False, False, True]
