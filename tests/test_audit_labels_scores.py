"""Balanced accuracy, AUC and intervals, by hand and by what they must not depend on."""

import math

import pytest
from unweave.audit.labels.scores import Answer, mean_with_interval, rounded, score


def answers(positive, negative, chances=None):
    """Verdicts of positives and negatives, each item in a document of its own."""
    truth = [True] * len(positive) + [False] * len(negative)
    chances = chances or [None] * len(truth)
    return [Answer(*each, place) for place, each in enumerate(zip(truth, [*positive, *negative], chances, strict=True))]


def test_worked_example():
    """3 of 4 positives and 1 of 2 negatives right: (0.75 + 0.5) / 2."""
    found = score(answers([True, True, True, False], [False, True], [0.9, 0.8, 0.7, 0.2, 0.1, 0.8]))
    assert found is not None
    assert found.value == 0.625
    # Pairs won: 0.9 both, 0.8 one and a tie, 0.7 one, 0.2 one.
    assert found.auc == pytest.approx((2 + 1.5 + 1 + 1) / 8)
    assert (found.n, found.positives, found.documents, found.failures) == (6, 4, 6, 0)


def test_a_judge_that_always_says_no_is_at_chance_however_many_negatives():
    """SAEBench's plain accuracy gives such a judge 10 of 14."""
    found = score(answers([False] * 4, [False] * 10))
    assert found is not None and (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def test_unreadable_answers_are_counted_and_move_to_chance():
    whole = score(answers([True] * 4, [False] * 4))
    half = score(answers([True, True, None, None], [False, False, None, None]))
    none = score(answers([None] * 4, [None] * 4))
    assert whole is not None and half is not None and none is not None
    assert [each.value for each in (whole, half, none)] == [1.0, 0.75, 0.5]
    assert [each.failures for each in (whole, half, none)] == [0, 4, 8]
    assert whole.n == half.n == none.n == 8


def test_interval_is_over_documents_not_items():
    """Copies of one document's items say nothing new: the interval stays as wide."""
    few = [Answer(True, place % 4 > 0, None, place) for place in range(12)] + [Answer(False, False, None, 99)]
    many = [each for each in few for _ in range(10)]
    one, ten = score(few), score(many)
    assert one is not None and ten is not None
    assert one.high - one.low > 0.1
    assert (ten.low, ten.high) == pytest.approx((one.low, one.high), abs=1e-9)


def test_one_kind_has_no_score():
    assert score([]) is None
    assert score(answers([True], [])) is None
    assert score(answers([], [True])) is None


def test_interval_holds_its_value():
    for seed in range(5):
        found = score(answers([True] * 9 + [False], [False] * 3, [0.5] * 13), seed)
        assert found is not None and found.low <= found.value <= found.high
        assert found.auc == found.auc_low == found.auc_high == 0.5
    assert mean_with_interval([0.25, 0.75])["mean"] == 0.5
    assert mean_with_interval([])["mean"] is None


def test_rounding_leaves_no_number_that_json_lacks():
    assert rounded({"a": [math.nan, math.inf, 0.123456], "b": (1, "x")}) == {"a": [None, None, 0.1235], "b": [1, "x"]}
