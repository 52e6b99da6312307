import numpy as np
import pytest

from rewards import run_statistics
from rewards.run_statistics import aggregate, interquartile_mean, performance_profile, probability_of_improvement


def rng():
    return np.random.default_rng(7)


def test_interquartile_mean_worked_examples():
    assert interquartile_mean(np.array([[0, 0, 0, 0], [0, 0, 0, 100.0]])) == 0
    assert interquartile_mean(np.array([[1, 2, 3, 4, 5.0]])) == 3


def test_the_other_aggregates_by_hand():
    scores = np.array([[0.0, 2.0, 0.5], [1.0, 2.0, 0.5]])
    assert run_statistics.median_of_task_means(scores) == 0.5
    assert run_statistics.mean_score(scores) == 1.0
    assert run_statistics.optimality_gap(scores) == pytest.approx(1 - (0 + 1 + 1 + 1 + 0.5 + 0.5) / 6)


def test_runs_of_each_task_are_drawn_independently():
    """The standard error of the mean has a closed form; drawing whole runs would keep the correlation and differ."""
    level = np.linspace(0, 1, 8)[:, None]
    scores = level + np.zeros((8, 5))  # every run is equally good on all tasks
    estimate = aggregate(scores, run_statistics.mean_score, rng(), num_resamples=20_000)
    analytic = np.sqrt(scores.var(axis=0).sum() / 8) / 5
    assert (estimate.high - estimate.low) / (2 * 1.96) == pytest.approx(analytic, rel=0.03)
    assert estimate.n == 8


def test_one_run_has_an_interval_without_width():
    estimate = aggregate([[0.2, 0.4]], interquartile_mean, rng(), num_resamples=50)
    assert (estimate.low, estimate.high, estimate.n) == (estimate.value, estimate.value, 1)


def test_probability_of_improvement_counts_ties_half():
    estimate = probability_of_improvement([[1.0, 0.0], [3.0, 0.0]], [[2.0, 0.0]], rng(), num_resamples=200)
    assert estimate.value == 0.5
    assert estimate.low < 0.5 < estimate.high
    assert probability_of_improvement([[2.0]], [[1.0]], rng(), num_resamples=5).value == 1.0


def test_profile_is_strict_and_falls():
    shares = performance_profile([[0.0, 0.5], [0.5, 1.0]], [-1.0, 0.0, 0.5, 1.0], rng(), num_resamples=200)
    assert [s.value for s in shares] == [1.0, 0.75, 0.25, 0.0]
    assert shares[1].low < 0.75 < shares[1].high


@pytest.mark.parametrize("bad", [[], [[]], [[1.0], [1.0, 2.0]], [[float("nan")]]])
def test_a_missing_score_is_refused(bad):
    with pytest.raises(ValueError, match=r"every run"):
        aggregate(bad, interquartile_mean, rng())


def test_other_tasks_are_not_compared():
    with pytest.raises(ValueError, match="task by task"):
        probability_of_improvement([[1.0]], [[1.0, 2.0]], rng())
