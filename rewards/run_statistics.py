"""Statistics over several runs of several tasks: aggregates, profiles and comparisons that a lucky seed cannot sway.

Scores are a matrix [runs, tasks], normalised so that 1 is the reference level. Randomness comes from a generator passed
in. Source of all: Deep RL at the edge of the statistical precipice, arXiv:2108.13264.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rewards.statistics import Estimate, Float64Array

Statistic = Callable[[Float64Array], Float64Array]
"""[..., runs, tasks] to [...]."""

TRIM = 0.25
"""Share of the scores that the interquartile mean leaves out at each end."""


def interquartile_mean(scores: Float64Array) -> Float64Array:
    """[...]: mean of all run-task scores without the floor(n / 4) lowest and highest ones."""
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = int(TRIM * flat.shape[-1])
    return flat[..., cut : flat.shape[-1] - cut].mean(axis=-1)


def mean_score(scores: Float64Array) -> Float64Array:
    """[...]: mean over tasks of the mean over runs."""
    return scores.mean(axis=(-2, -1))


def median_of_task_means(scores: Float64Array) -> Float64Array:
    """[...]: the task in the middle; the aggregate with the widest interval, for comparison with older tables."""
    return np.median(scores.mean(axis=-2), axis=-1)


def optimality_gap(scores: Float64Array, level: float = 1.0) -> Float64Array:
    """[...]: how far the runs stay below `level` on average; nothing above it counts."""
    return level - np.minimum(scores, level).mean(axis=(-2, -1))


AGGREGATES: dict[str, Statistic] = {
    "IQM": interquartile_mean,
    "mean": mean_score,
    "median": median_of_task_means,
    "optimality gap": optimality_gap,
}


def aggregate(
    scores: Sequence[Sequence[float]] | npt.NDArray[Any],
    statistic: Statistic,
    rng: np.random.Generator,
    *,
    confidence: float = 0.95,
    num_resamples: int = 50_000,
) -> Estimate:
    """A statistic of the matrix with its stratified bootstrap interval; `n` is the number of runs.

    Of one run the interval has no width, because a single run says nothing about the next: report n.

    Raises:
        ValueError: see `score_matrix`.
    """
    matrix = score_matrix(scores)
    resampled = np.concatenate(list(_resampled(matrix, statistic, rng, num_resamples)))
    low, high = _interval(resampled, confidence)
    return Estimate(float(statistic(matrix)), low, high, len(matrix), confidence)


def probability_of_improvement(
    ours: Sequence[Sequence[float]] | npt.NDArray[Any],
    theirs: Sequence[Sequence[float]] | npt.NDArray[Any],
    rng: np.random.Generator,
    *,
    confidence: float = 0.95,
    num_resamples: int = 2_000,
) -> Estimate:
    """Chance that a run of ours beats one of theirs on a task drawn at random; ties count one half.

    Args:
        ours, theirs: [runs, tasks] of the same tasks; the numbers of runs may differ.

    Raises:
        ValueError: other tasks, or see `score_matrix`.
    """
    mine, other = score_matrix(ours), score_matrix(theirs)
    if mine.shape[1] != other.shape[1]:
        raise ValueError(f"runs of {mine.shape[1]} and of {other.shape[1]} tasks cannot be compared task by task")
    resampled = np.array([_share_won(_one_draw(mine, rng), _one_draw(other, rng)) for _ in range(num_resamples)])
    low, high = _interval(resampled, confidence)
    return Estimate(_share_won(mine, other), low, high, min(len(mine), len(other)), confidence)


def performance_profile(
    scores: Sequence[Sequence[float]] | npt.NDArray[Any],
    levels: Sequence[float],
    rng: np.random.Generator,
    *,
    confidence: float = 0.95,
    num_resamples: int = 2_000,
) -> list[Estimate]:
    """Share of runs with a score strictly above each level, with its pointwise interval.

    Raises:
        ValueError: see `score_matrix`.
    """
    matrix = score_matrix(scores)
    grid = np.asarray(levels, dtype=np.float64)

    def shares(values: Float64Array) -> Float64Array:
        return np.stack([(values > level).mean(axis=(-2, -1)) for level in grid], axis=-1)

    resampled = np.concatenate(list(_resampled(matrix, shares, rng, num_resamples)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail], axis=0)
    values = shares(matrix)
    ends = zip(values, low, high, strict=True)
    return [Estimate(float(v), float(a), float(b), len(matrix), confidence) for v, a, b in ends]


def score_matrix(scores: Sequence[Sequence[float]] | npt.NDArray[Any]) -> Float64Array:
    """[runs, tasks] as numbers.

    Raises:
        ValueError: no runs or tasks, rows of different lengths, or a missing score: leaving it out would change what
            the aggregate means.
    """
    try:
        matrix = np.asarray(scores, dtype=np.float64)
    except ValueError:
        raise ValueError("every run needs a score for every task: rows have different lengths") from None
    if matrix.ndim != 2 or 0 in matrix.shape or not np.isfinite(matrix).all():
        raise ValueError(
            f"need a finite score for every run (row) and task (column), got shape {list(matrix.shape)} with "
            f"{int((~np.isfinite(matrix)).sum())} missing: repeat what failed, or drop the task for all runs"
        )
    return matrix


def _one_draw(matrix: Float64Array, rng: np.random.Generator) -> Float64Array:
    """[runs, tasks]: the runs of each task drawn with replacement, independently of the other tasks.

    Whole rows would keep the correlation between tasks and make the interval too narrow.
    """
    return np.take_along_axis(matrix, rng.integers(len(matrix), size=matrix.shape), axis=0)


def _resampled(
    matrix: Float64Array, statistic: Statistic, rng: np.random.Generator, num: int
) -> Iterator[Float64Array]:
    """The statistic of `num` draws as `_one_draw` makes them, at most 32 MB of scores at a time."""
    rows = max(1, 4_000_000 // matrix.size)
    for start in range(0, num, rows):
        size = (min(rows, num - start), *matrix.shape)
        yield statistic(np.take_along_axis(matrix[None], rng.integers(len(matrix), size=size), axis=1))


def _share_won(ours: Float64Array, theirs: Float64Array) -> float:
    mine, other = ours[:, None, :], theirs[None, :, :]
    return float(((mine > other) + 0.5 * (mine == other)).mean())


def _interval(values: Float64Array, confidence: float) -> tuple[float, float]:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
