import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.statistics import (
    accuracy,
    bootstrap_interval,
    cot_pass_at_k,
    majority_at_k,
    mean,
    mean_difference,
    pass_at_k,
    settled,
    wilson_interval,
)


def test_pass_at_k_worked_example():
    assert pass_at_k(10, 3, 5) == pytest.approx(0.9166667, abs=1e-7)


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(counts):
    n, c, k = counts
    subsets = list(itertools.combinations([1] * c + [0] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(s) for s in subsets) / len(subsets), abs=1e-12)


def test_pass_at_k_with_large_counts_agrees_with_binomials():
    assert pass_at_k(1000, 37, 100) == pytest.approx(1 - math.comb(963, 100) / math.comb(1000, 100), abs=1e-12)


@pytest.mark.parametrize("counts", [(3, 1, 4), (3, 4, 1), (3, -1, 1), (3, 1, 0), (0, 0, 1)])
def test_pass_at_k_refuses_impossible_counts(counts):
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(*counts)


def test_cot_pass_at_k_counts_right_answers_with_sound_reasoning():
    right, sound = [True] * 3 + [False] * 7, [True, True, False] + [None] * 7
    assert cot_pass_at_k(right, sound, 5) == pytest.approx(0.777778, abs=1e-6)
    assert cot_pass_at_k([True, True], [None, True], 1) == 1.0  # nobody judged the first, so it leaves n
    assert cot_pass_at_k([True, True], [None, True], 2) is None
    assert cot_pass_at_k([False], [True], 1) == 0.0


def test_settled_votes():
    votes = [True, True, None, False]
    assert [settled(votes, rule) for rule in ("any", "majority", "all")] == [True, True, False]
    assert settled([None]) is None
    assert settled([True, False]) is None


@given(
    st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=6).flatmap(
        lambda answers: st.tuples(st.just(answers), st.integers(1, len(answers)))
    )
)
def test_majority_is_the_share_of_subsets_in_which_the_right_answer_leads(drawn):
    answers, k = drawn
    values = []
    for subset in itertools.combinations(answers, k):
        counts = {a: subset.count(a) for a in subset if a is not None}
        leaders = [a for a, count in counts.items() if count == max(counts.values())]
        values.append(leaders.count("a") / len(leaders) if leaders else 0.0)
    found = majority_at_k(answers, [a == "a" for a in answers], k, np.random.default_rng(0))
    assert found == pytest.approx(sum(values) / len(values), abs=1e-12)


def test_majority_of_many_samples_is_drawn():
    answers = ["5"] * 24 + ["6"] * 16
    exact = sum(math.comb(24, i) * math.comb(16, 9 - i) for i in range(5, 10)) / math.comb(40, 9)
    found = majority_at_k(answers, [a == "5" for a in answers], 9, np.random.default_rng(0), num_draws=20_000)
    assert found == pytest.approx(exact, abs=0.015)
    with pytest.raises(ValueError, match="both right and wrong"):
        majority_at_k(["5", "5"], [True, False], 1, np.random.default_rng(0))


def test_wilson_worked_examples():
    # R: prop.test(x, n, correct = FALSE)$conf.int
    assert wilson_interval(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775328), abs=1e-6)
    assert wilson_interval(10, 10) == pytest.approx((0.7224672, 1.0), abs=1e-6)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_wilson_ends_are_where_the_score_test_just_rejects(counts, confidence):
    successes, n = counts
    low, high = wilson_interval(successes, n, confidence)
    share = successes / n
    assert 0 <= low <= share <= high <= 1
    z = np.sqrt(2) * _inverse_erf(confidence)
    for end in (low, high):
        if 0 < end < 1:
            assert abs(share - end) / math.sqrt(end * (1 - end) / n) == pytest.approx(z, rel=1e-6)


def _inverse_erf(x):
    low, high = 0.0, 10.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if math.erf(middle) < x else (low, middle)
    return low


@pytest.mark.parametrize("bad", [(1, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 0.0), (1, 2, 1.0)])
def test_wilson_refuses(bad):
    with pytest.raises(ValueError):
        wilson_interval(*bad)


def test_bootstrap_is_repeatable_and_matches_the_normal_interval():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=2000)
    first = bootstrap_interval(values, np.random.default_rng(1))
    assert first == bootstrap_interval(values, np.random.default_rng(1))
    assert first != bootstrap_interval(values, np.random.default_rng(2))
    half = 1.959964 * values.std() / math.sqrt(len(values))
    assert first == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)


def test_bootstrap_of_two_values_is_known_exactly():
    # means of two draws from {0, 1}: 0, 1/2, 1 with chances 1/4, 1/2, 1/4
    values, rng = [0.0, 1.0], np.random.default_rng(0)
    assert bootstrap_interval(values, rng, confidence=0.9) == (0.0, 1.0)
    assert bootstrap_interval(values, rng, confidence=0.4) == (0.5, 0.5)


def test_bootstrap_takes_other_statistics():
    values = np.random.default_rng(0).exponential(size=500)
    low, high = bootstrap_interval(values, np.random.default_rng(1), statistic=lambda r: np.median(r, axis=-1))
    assert low < np.median(values) < high < values.mean()


def test_resampling_in_pieces_changes_nothing_but_memory():
    values = np.random.default_rng(0).normal(size=60_000)  # a few rows at a time
    low, high = bootstrap_interval(values, np.random.default_rng(1), num_resamples=200)
    half = 1.959964 * values.std() / math.sqrt(len(values))
    assert (high - low) / 2 == pytest.approx(half, rel=0.25)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [[1.0]], [math.inf]])
def test_bootstrap_refuses_what_has_no_mean(values):
    with pytest.raises(ValueError, match="finite"):
        bootstrap_interval(values, np.random.default_rng(0))


def test_estimates():
    share = accuracy(8, 10)
    assert (share.value, share.n) == (0.8, 10)
    assert (share.low, share.high) == wilson_interval(8, 10)
    average = mean([0.0, 1.0, 1.0, 1.0], np.random.default_rng(0))
    assert (average.value, average.n) == (0.75, 4)
    assert average.low < 0.75 < average.high


def test_difference_of_means_has_the_interval_of_two_independent_samples():
    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(1.0, 1.0, 400), rng.normal(0.0, 2.0, 100)
    found = mean_difference(ours, theirs, rng)
    analytic = math.sqrt(ours.var() / 400 + theirs.var() / 100)
    assert found.value == pytest.approx(ours.mean() - theirs.mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * analytic, rel=0.05)
    assert found.n == 100
