"""Thresholds, exact intervals and slopes: against their definitions and by simulation."""

import math

import pytest
import saes_toys
import torch
from unweave.audit.monitor import Monitor, calibrate, drift, needed
from unweave.audit.monitor.calibrate import clopper_pearson
from unweave.audit.monitor.drift import slopes
from unweave.saes import UserError


def at_least(hits, n, p):
    return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(hits, n + 1))


@pytest.mark.parametrize("hits, n", [(1, 10), (3, 20), (9, 10), (50, 400)])
def test_exact_interval_by_its_definition(hits, n):
    """At either end so many hits, or so few, have probability 0.025."""
    low, high = clopper_pearson(hits, n)
    assert at_least(hits, n, low) == pytest.approx(0.025, abs=1e-9)
    assert 1 - at_least(hits + 1, n, high) == pytest.approx(0.025, abs=1e-9)


def test_exact_interval_at_the_ends():
    low, high = clopper_pearson(0, 10)
    assert low == 0.0 and (1 - high) ** 10 == pytest.approx(0.025, abs=1e-9)
    assert clopper_pearson(10, 10)[1] == 1.0


def test_threshold_keeps_the_stated_rate_on_new_texts():
    """Of scores of one distribution, 1 in 20 above the threshold on average; the intervals hold the truth as often as they say."""
    generator = torch.Generator().manual_seed(0)
    rates, held = [], 0
    for seed in range(400):
        found = calibrate(torch.rand(80, generator=generator, dtype=torch.float64).tolist(), 0.05, seed)
        rates.append(1 - found.threshold)  # of uniform scores
        held += found.low <= 1 - found.threshold <= found.high
    mean = sum(rates) / len(rates)
    assert mean == pytest.approx(2 / 41, abs=0.004)  # rank 39 of 40
    assert held / 400 > 0.93


def test_as_few_texts_as_needed_are_enough_and_one_less_is_not():
    assert needed(0.01) == 198 and needed(0.05) == 38 and needed(0.5) == 2
    scores = [float(value) for value in range(198)]
    found = calibrate(scores, 0.01)
    assert (found.set_by, found.checked) == (99, 99)
    with pytest.raises(UserError, match="at least 198 held-out"):
        calibrate(scores[1:], 0.01)


def test_the_half_that_sets_the_threshold_does_not_check_it():
    """Of scores that all differ the first half has no alarm, or 1 - rate of it below; the second is not forced to."""
    found = [
        calibrate(torch.randn(100, generator=torch.Generator().manual_seed(n)).tolist(), 0.1, n) for n in range(30)
    ]
    assert len({each.alarms for each in found}) > 3
    assert max(each.alarms for each in found) > 5


def test_sure_with_is_where_no_alarm_proves_the_rate():
    sure = calibrate([float(n) for n in range(40)], 0.05).sure_with
    assert clopper_pearson(0, sure)[1] <= 0.05 < clopper_pearson(0, sure - 1)[1]


@pytest.mark.parametrize("rate", [0.0, 1.0, -1.0, math.nan])
def test_rates_that_are_none_are_refused(rate):
    with pytest.raises(UserError, match="between 0 and 1"):
        needed(rate)


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(UserError, match="finite"):
        calibrate([math.nan] * 40, 0.1)


def test_slope_by_hand():
    scores = torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0]], dtype=torch.float64)
    assert slopes(scores, torch.arange(3)).tolist() == [0.5, 0.0]


def test_a_rise_is_found_and_no_rise_is_not():
    generator = torch.Generator().manual_seed(0)
    flat = [torch.randn(12, generator=generator).tolist() for _ in range(20)]
    rising = [[value + 0.2 * place for place, value in enumerate(each)] for each in flat]
    found, nothing = drift(rising), drift(flat)
    assert found.low < 0.2 < found.high and found.low > 0 and found.p < 0.001
    assert nothing.low < 0 < nothing.high and nothing.p > 0.05
    assert found.slope == pytest.approx(nothing.slope + 0.2)
    assert nothing.shuffled_low <= nothing.slope <= nothing.shuffled_high
    assert found.slope > found.shuffled_high


def test_p_values_of_noise_are_uniform():
    ps = [drift([torch.randn(6, generator=torch.Generator().manual_seed(n)).tolist()], n).p for n in range(100)]
    assert 0.35 < sum(ps) / 100 < 0.65
    assert sum(p <= 0.1 for p in ps) <= 20


def test_one_message_that_stands_out_proves_no_drift():
    assert drift([[0.0, 0.0, 0.0, 9.0]]).p > 0.3


def test_short_conversations_are_left_out():
    found = drift([[1.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
    assert (found.conversations, found.messages, found.slope) == (1, 4, 1.0)
    with pytest.raises(UserError, match="at least 3 messages"):
        drift([[1.0, 2.0]])


def test_one_role_that_is_no_list_is_refused():
    with pytest.raises(UserError, match="list of roles"):
        Monitor(saes_toys.model(), {}, roles="user")
