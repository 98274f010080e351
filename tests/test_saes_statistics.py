"""Intervals: each end is where it is defined to be, by hand and in how often the truth lies inside."""

import numpy as np
import pytest
import torch
from unweave.saes import statistics
from unweave.saes.statistics import Z, bootstrap, middle, redrawn, sum_by, wilson


@pytest.mark.parametrize("hits, total", [(3, 4), (1, 1), (0, 7), (7, 7), (412, 1000)])
def test_at_either_end_the_share_lies_z_deviations_away(hits, total):
    for end in wilson(hits, total):
        assert abs(hits / total - end) == pytest.approx(Z * np.sqrt(end * (1 - end) / total), abs=1e-12)


def test_wilsons_interval_is_the_worked_one_for_numbers_and_arrays():
    low, high = wilson([3, 0, 5, 9], [4, 0, 5, 3])
    assert (round(float(low[0]), 4), round(float(high[0]), 4)) == (0.3006, 0.9544)
    assert (low[1], high[1]) == (0, 1)  # nothing was counted
    assert (low[2], high[2]) == wilson(5, 5) and high[2] == 1
    assert (low[3], high[3]) == wilson(3, 3)
    for total in range(1, 200):
        assert (
            wilson(0, total)[0] == 0 < wilson(1, total)[0]
            and wilson(total, total)[1] == 1 > wilson(total - 1, total)[1]
        )


def test_the_middle_leaves_a_fortieth_at_either_end():
    drawn = torch.arange(1001, dtype=torch.float64)[torch.randperm(1001)]
    assert middle(drawn) == (25, 975)
    low, high = middle(torch.stack([drawn, -drawn], 1))
    assert (low.tolist(), high.tolist()) == ([25, -975], [975, -25])


def test_groups_are_drawn_whole(monkeypatch):
    """Each draw is a sum of as many groups as there are, some of them twice; how many are summed at once changes nothing."""
    sums = torch.tensor([[1.0, 10.0], [100.0, 1000.0], [10_000.0, 100_000.0]], dtype=torch.float64)
    drawn = redrawn(sums, 0, 200)
    assert torch.equal(drawn[:, 1], 10 * drawn[:, 0])
    assert {sum(map(int, str(int(total)))) for total in drawn[:, 0].tolist()} == {3}
    assert len(set(drawn[:, 0].tolist())) == 10  # all ways of three draws of three
    monkeypatch.setattr(statistics, "HELD", 7)
    assert torch.equal(drawn, redrawn(sums, 0, 200)) and not torch.equal(drawn, redrawn(sums, 1, 200))


def test_the_interval_of_a_mean_holds_it_as_often_as_it_says():
    inside = 0
    for seed in range(200):
        values = torch.randn(40, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        low, high = bootstrap(values, lambda sums: sums[:, 0] / 40, seed, 400)
        inside += low <= 0 <= high
    assert 0.88 < inside / 200 <= 0.99


def test_rows_are_summed_by_their_group():
    found = sum_by(torch.tensor([7, 2, 7]), torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    assert found.tolist() == [[3, 4], [6, 8]] and found.dtype == torch.float64
