from __future__ import annotations

import statistics
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.advantages import (
    ADVANTAGES,
    GROUP_OPERATIONS,
    best_over_second,
    centered,
    group_relative,
    leave_one_out,
    over_mean,
    score,
)
from learner.config import AdvantageName

WITH_BASELINE = [group_relative, centered, leave_one_out, best_over_second]
IN_ONE_GROUP = {**GROUP_OPERATIONS, "best_over_second": best_over_second}


def advantages(function, scores, compared=None):
    scores = np.array(scores, dtype=np.float64)
    compared = np.ones(len(scores), dtype=bool) if compared is None else np.array(compared)
    return function(scores, compared)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (group_relative, [0.866024, -0.866024, -0.866024, 0.866024]),
        (centered, [0.5, -0.5, -0.5, 0.5]),
        (leave_one_out, [0.666667, -0.666667, -0.666667, 0.666667]),
        (score, [1.0, 0.0, 0.0, 1.0]),
    ],
)
def test_worked_numbers(function, expected):
    np.testing.assert_array_equal(advantages(function, [1, 0, 0, 1]).round(6), expected)


def test_one_success_in_four_group_relative():
    expected = [1.499997, -0.499999, -0.499999, -0.499999]
    np.testing.assert_array_equal(advantages(group_relative, [1, 0, 0, 0]).round(6), expected)


scores_of_a_group = st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=2, max_size=9)


@settings(deadline=None)
@given(scores_of_a_group)
def test_agree_with_the_definitions(scores):
    if len(set(scores)) == 1:
        return
    mean, std = statistics.fmean(scores), statistics.stdev(scores)
    np.testing.assert_allclose(
        advantages(group_relative, scores), [(s - mean) / (std + 1e-6) for s in scores], rtol=1e-10, atol=1e-10
    )
    np.testing.assert_allclose(advantages(centered, scores), [s - mean for s in scores], atol=1e-10)
    others = [statistics.fmean(scores[:i] + scores[i + 1 :]) for i in range(len(scores))]
    np.testing.assert_allclose(
        advantages(leave_one_out, scores), [s - o for s, o in zip(scores, others, strict=True)], atol=1e-10
    )


@pytest.mark.parametrize("function", IN_ONE_GROUP.values(), ids=IN_ONE_GROUP.keys())
@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-10, 10), st.booleans()), min_size=1, max_size=8))
def test_members_not_compared_change_nothing_and_get_zero(function, members):
    scores = [s if is_compared else float("nan") for s, is_compared in members]
    compared = [is_compared for _, is_compared in members]
    result = advantages(function, scores, compared)
    kept = [s for s, is_compared in members if is_compared]
    np.testing.assert_array_equal(result[compared], advantages(function, kept))
    assert not result[~np.array(compared)].any()


@pytest.mark.parametrize("function", WITH_BASELINE)
@pytest.mark.parametrize("scores", [[0.1] * 3, [0.1] * 7, [1.0], [-3.3], [0.0, 0.0]])
def test_equal_scores_and_a_group_of_one_give_exactly_zero(function, scores):
    assert advantages(function, scores).tolist() == [0.0] * len(scores)


@pytest.mark.parametrize("function", WITH_BASELINE)
def test_one_scored_member_left_is_a_group_of_one(function):
    assert advantages(function, [1.0, 0.0, 5.0], [True, False, False]).tolist() == [0.0, 0.0, 0.0]


def test_score_has_no_baseline():
    assert advantages(score, [0.7]).tolist() == [0.7]


def test_nobody_compared():
    for function in (*IN_ONE_GROUP.values(), over_mean):
        assert advantages(function, [np.nan, 1.0], [False, False]).tolist() == [0.0, 0.0]


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="must be finite"):
        advantages(centered, [1.0, np.nan])
    with pytest.raises(ValueError, match=r"\[G\]"):
        centered(np.zeros(3), np.ones(2, dtype=bool))


def test_table_matches_the_config():
    assert set(ADVANTAGES) == set(get_args(AdvantageName))
