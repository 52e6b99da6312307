from __future__ import annotations

import math
import statistics
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.rules.table import extra_members
from learner.advantages import (
    ADVANTAGES,
    GROUP_OPERATIONS,
    ScoredBatch,
    best_over_second,
    centered,
    group_relative,
    leave_one_out,
    over_mean,
    score,
    without_outliers,
)
from learner.config import TOKEN_ADVANTAGES, AdvantageName

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


# --------------------------------------------------------------------------------------- named, over a whole batch


def batch_of(*groups, lengths=None, components=None):
    """Groups of scores; None stands for a member that is not compared."""
    scores = [np.nan if s is None else float(s) for group in groups for s in group]
    return ScoredBatch(
        scores=np.array(scores),
        compared=np.array([s is not None for group in groups for s in group]),
        groups=np.repeat(np.arange(len(groups)), [len(group) for group in groups]),
        lengths=np.array(lengths or [1] * len(scores)),
        components={name: np.array(values, dtype=float) for name, values in (components or {}).items()},
    )


NAN = float("nan")
NAMED = [
    ("group_relative", {}, batch_of([1, 0, 0, 1]), [0.866024, -0.866024, -0.866024, 0.866024]),
    ("length_weighted", {}, batch_of([0.9, 0.5, 0.1], lengths=[10, 20, 30]), [0.533333, 0.133333, -0.266667]),
    ("nonzero_scaled", {}, batch_of([1, 0, 0, 1]), [1, -1, -1, 1]),
    ("best_over_second", {}, batch_of([0.9, 0.5, 0.1]), [0.4, 0, 0]),
    ("max_likelihood", {}, batch_of([1, 0, 0, 1]), [0.999998, -0.999998, -0.999998, 0.999998]),
    ("max_likelihood", {}, batch_of([0, 0], [1, 1]), [0, 0, 0, 0]),
    (
        "batch_relative",
        {},
        batch_of([1, 0, 0, 0], [1, 1, 1, 0]),
        [1.403119, -0.467706, -0.467706, -0.467706, 0.467706, 0.467706, 0.467706, -1.403119],
    ),
    ("whitened", {}, batch_of([1, 0], lengths=[3, 2]), [0.730297, -1.095445]),
    ("centered_whitened", {}, batch_of([1, 0], lengths=[3, 2]), [0.730297, -1.095445]),
    ("shifted", {}, batch_of([1, 0]), [0.6, -0.4]),
    ("shifted", {"shift": 0.5}, batch_of([1, 0], [2]), [0, -1, -0.5]),
    ("log_mean_exp", {}, batch_of([1, 0]), [0.379885, -0.620115]),
    ("log_mean_exp", {}, batch_of([1e4, 0]), [0.693147, -9999.306853]),
    ("positives_only", {}, batch_of([1, 0], [0.5]), [1, NAN, NAN]),
    ("negatives_only", {"correct_from": 0.5}, batch_of([1, 0], [0.5]), [NAN, -1, NAN]),
    ("sign_weighted", {}, batch_of([1, 0]), [0.1, -1]),
    (
        "component_relative",
        {},
        batch_of([1, 0], lengths=[3, 2], components={"a": [1, 0], "b": [10, 0]}),
        [0.730297, -1.095445],
    ),
]


@pytest.mark.parametrize(("name", "options", "batch", "expected"), NAMED)
def test_worked_numbers_of_named_advantages(name, options, batch, expected):
    np.testing.assert_allclose(ADVANTAGES[name](batch, **options), expected, atol=6e-7)


def test_outliers_get_zero():
    np.testing.assert_array_equal(without_outliers(np.array([1.2, -3.4, 2.9, 0.1])), [1.2, 0.0, 2.9, 0.1])
    lone = batch_of([1, *[0] * 30])
    assert ADVANTAGES["outliers_removed"](lone)[0] == 0.0
    assert ADVANTAGES["outliers_removed"](lone, bound=9.0)[0] > 3.0


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000))
def test_named_advantages_agree_with_the_definitions(seed):
    rng = np.random.default_rng(seed)
    groups = [rng.integers(0, 3, size=rng.integers(2, 6)).tolist() for _ in range(3)]
    flat = [s for group in groups for s in group]
    lengths = rng.integers(1, 9, size=len(flat)).tolist()
    batch = batch_of(*groups, lengths=lengths)
    means = [statistics.fmean(group) for group in groups for _ in group]
    centred = [s - m for s, m in zip(flat, means, strict=True)]
    expected = {
        "shifted": [c + 0.1 for c in centred],
        "batch_relative": [c / (statistics.stdev(flat) + 1e-6) for c in centred],
        "nonzero_scaled": [c * len(flat) / max(1, sum(s != 0 for s in flat)) for c in centred],
        "max_likelihood": [c / (m + 1e-6) for c, m in zip(centred, means, strict=True)],
    }
    for name, values in {"whitened": [float(s) for s in flat], "centered_whitened": centred}.items():
        tokens = [v for v, n in zip(values, lengths, strict=True) for _ in range(n)]
        mean, variance = statistics.fmean(tokens), statistics.variance(tokens)
        expected[name] = [(v - mean) / (variance + 1e-8) ** 0.5 for v in values]
    weighted, start = [], 0
    for group in groups:
        n = lengths[start : start + len(group)]
        base = sum(a * b for a, b in zip(n, group, strict=True)) / sum(n)
        weighted += [s - base for s in group]
        start += len(group)
    expected["length_weighted"] = weighted
    for name, values in expected.items():
        np.testing.assert_allclose(ADVANTAGES[name](batch), values, atol=1e-10, rtol=1e-10, err_msg=name)


@pytest.mark.parametrize("name", sorted(set(ADVANTAGES) - {"component_relative"}))
def test_members_not_compared_move_nothing_in_a_batch(name):
    alone = batch_of([1, 0, 0], [1, 1, 0], lengths=[2, 3, 1, 4, 2, 2])
    among = batch_of([1, None, 0, 0], [1, 1, 0, None], lengths=[2, 9, 3, 1, 4, 2, 2, 9])
    result = ADVANTAGES[name](among)
    np.testing.assert_array_equal(result[among.compared], ADVANTAGES[name](alone))


def test_what_named_advantages_refuse():
    with pytest.raises(ValueError, match="needs verdicts with named components"):
        ADVANTAGES["component_relative"](batch_of([1, 0]))
    with pytest.raises(ValueError, match="must be finite"):
        ADVANTAGES["component_relative"](batch_of([1, 0], components={"a": [1, NAN]}))
    with pytest.raises(ValueError, match="negative scores make meaningless"):
        ADVANTAGES["max_likelihood"](batch_of([1, -1]))
    with pytest.raises(ValueError, match="temperature must be above 0"):
        ADVANTAGES["log_mean_exp"](batch_of([1, 0]), temperature=0.0)


def test_table_matches_the_config():
    assert set(ADVANTAGES) == set(get_args(AdvantageName)) - TOKEN_ADVANTAGES


@pytest.mark.parametrize(
    ("weight", "expected"),
    [(1.0, [-0.5, -0.5, 0.5, -0.5]), (0.5, [-0.25, -0.25, 0.75, -0.25]), (0.0, [0.0, 0.0, 1.0, 0.0])],
)
def test_a_group_that_grew_is_compared_with_its_last_sampling(weight, expected):
    """A hard group (0 of 2) grown by two: the combined mean is 1/4, the second stage's 1/2."""
    batch = ScoredBatch(
        scores=np.array([0.0, 0.0, 1.0, 0.0, 1.0, 0.0]),
        compared=np.ones(6, dtype=bool),
        groups=np.array([0, 0, 0, 0, 1, 1]),
        lengths=np.ones(6, dtype=np.int64),
        stages=np.array([0, 0, 1, 1, 0, 0]),
    )
    assert ADVANTAGES["stage_centered"](batch, weight=weight).tolist() == pytest.approx([*expected, 0.5, -0.5])


@pytest.mark.parametrize(("schedule", "cap", "bias"), [("equal", 32, 0.035), ("hardness", 64, 0.040)])
def test_the_combined_mean_is_biased_because_the_first_stage_decides_who_grows(schedule, cap, bias):
    """DARS at a success rate of 1/4 and 8 answers, by enumeration: the specification's numbers."""
    combined = 0.0
    for k in range(9):
        probability = math.comb(8, k) * 0.25**k * 0.75 ** (8 - k)
        extra = extra_members(8, k / 8, schedule=schedule, max_members=cap, normalised=False) if k < 4 else 0
        combined += probability * (k + 0.25 * extra) / (8 + extra)
    assert combined - 0.25 == pytest.approx(bias, abs=1e-3)
