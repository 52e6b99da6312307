"""Estimates with the intervals that belong to them. Pure functions; randomness comes from a generator passed in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its interval [low, high] at `confidence`, from `n` observations."""

    value: float
    low: float
    high: float
    n: int
    confidence: float = 0.95


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of k samples is right, given c right ones among n.

    1 - C(n - c, k) / C(n, k), as the product 1 - prod_{i = n-c+1..n} (1 - k / i). Average it over tasks; the plug-in
    form 1 - (1 - c/n)^k is biased. n counts scored samples only: a task with n < k has no value.

    Raises:
        ValueError: unless 1 <= k <= n and 0 <= c <= n.

    Source: Codex, arXiv:2107.03374, section 2.1.
    """
    if not (1 <= k <= n and 0 <= c <= n):
        raise ValueError(f"pass@k needs 1 <= k <= n and 0 <= c <= n, got n={n}, c={c}, k={k}")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a share; never leaves [0, 1] and has a width also at 0 and n successes.

    Raises:
        ValueError: unless 0 <= successes <= n, n >= 1 and 0 < confidence < 1.

    Source: E. B. Wilson, JASA 22 (1927), 209-212.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"a share needs 0 <= successes <= n and n >= 1, got successes={successes}, n={n}")
    z2 = _normal_quantile(confidence) ** 2
    share = successes / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    low = 0.0 if successes == 0 else centre - half  # the formula's own values, without its rounding error
    high = 1.0 if successes == n else centre + half
    return low, high


def bootstrap_interval(
    values: Sequence[float] | npt.NDArray[Any],
    rng: np.random.Generator,
    *,
    statistic: Callable[[Float64Array], Float64Array] | None = None,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
) -> tuple[float, float]:
    """Percentile interval of a statistic of independent values.

    Args:
        values: [n] one per independent unit; with several samples per task, first reduce each task to one value.
        statistic: [resamples, n] to [resamples]; the mean along the last axis when None.

    Raises:
        ValueError: no values, values that are not finite, or settings outside their range.
    """
    data = _finite(values)
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, got {num_resamples}")
    _normal_quantile(confidence)
    reduce = statistic or (lambda resampled: resampled.mean(axis=-1))
    rows = max(1, 4_000_000 // len(data))  # at most 32 MB of resampled values at a time
    estimates = np.concatenate(
        [
            reduce(data[rng.integers(len(data), size=(min(rows, num_resamples - start), len(data)))])
            for start in range(0, num_resamples, rows)
        ]
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(estimates, [tail, 1 - tail])
    return float(low), float(high)


def accuracy(successes: int, n: int, confidence: float = 0.95) -> Estimate:
    """Share of right answers among n scored ones, with its Wilson interval.

    Raises:
        ValueError: impossible counts.
    """
    low, high = wilson_interval(successes, n, confidence)
    return Estimate(successes / n, low, high, n, confidence)


def mean(
    values: Sequence[float] | npt.NDArray[Any],
    rng: np.random.Generator,
    *,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
) -> Estimate:
    """Mean of independent values, e.g. the mean score or pass@k of each task, with its bootstrap interval.

    Raises:
        ValueError: no values, or values that are not finite.
    """
    low, high = bootstrap_interval(values, rng, confidence=confidence, num_resamples=num_resamples)
    data = _finite(values)
    return Estimate(float(data.mean()), low, high, len(data), confidence)


def _normal_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _finite(values: Sequence[float] | npt.NDArray[Any]) -> Float64Array:
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or len(data) == 0 or not np.isfinite(data).all():
        raise ValueError(f"need a non-empty list of finite numbers, got {values!r:.200}; leave unscored samples out")
    return data
