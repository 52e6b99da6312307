import math

import numpy as np
import pytest

from rewards.preference_statistics import (
    brier_score,
    expected_calibration_error,
    idealised_ranking_accuracy,
    pair_accuracy,
    position_consistency,
    ranking_accuracy,
)


def test_ranking_accuracy_worked_example():
    found = ranking_accuracy([-10, -8, -5, math.nan], [-12, -7, -5, -1])
    assert (found.estimate.value, found.estimate.n, found.dropped) == (pytest.approx(2 / 3), 3, 1)


def test_the_ceiling_leaves_wrong_what_the_reference_has_too_far_wrong():
    """ln(0.7 / 0.3) / 0.1 = 8.473 nats are corrected."""
    assert idealised_ranking_accuracy([-8.47, -8.48, 3.0], [0.7, 0.7, 0.7], 0.1) == pytest.approx(2 / 3)
    assert idealised_ranking_accuracy([5.0], [0.3], 0.1) == 0.0
    with pytest.raises(ValueError, match="strictly"):
        idealised_ranking_accuracy([1.0], [1.0], 0.1)


def test_ties_count_half_for_a_scorer():
    found = pair_accuracy([1.0, 2.0, 0.0], [0.0, 2.0, 1.0], np.random.default_rng(0))
    assert found.estimate.value == 0.5
    assert pair_accuracy([1.0] * 10, [0.0] * 10, np.random.default_rng(0)).estimate.low < 0.8
    with pytest.raises(ValueError, match="nothing to rank"):
        pair_accuracy([math.nan], [0.0], np.random.default_rng(0))


def test_a_judge_that_always_takes_the_first_is_not_consistent():
    assert position_consistency(["first", "first"], ["first", "first"]) == 0.0
    assert position_consistency(
        ["first", "tie", None, "second"], ["second", "tie", "first", "second"]
    ) == pytest.approx(2 / 3)


def test_calibration():
    assert brier_score([0.5, 0.5], [True, False]) == 0.25
    assert brier_score([1.0, 0.0], [True, False]) == 0.0
    assert expected_calibration_error([0.95] * 20, [True] * 19 + [False]) == pytest.approx(0.0)
    # bins: 0.1 alone (gap 0.1); 0.9, 0.9 and 1.0 together (mean 0.9333, two of three right)
    assert expected_calibration_error([0.9, 0.9, 0.1, 1.0], [False, True, False, True]) == pytest.approx(
        (3 * (2.8 / 3 - 2 / 3) + 0.1) / 4
    )
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        brier_score([1.5], [True])
