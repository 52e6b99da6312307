"""Estimates with the intervals that belong to them. Pure functions; randomness comes from a generator passed in."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

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


def cot_pass_at_k(right: Sequence[bool], sound: Sequence[bool | None], k: int) -> float | None:
    """pass@k of one task where a sample counts only if its answer and its reasoning are right.

    Args:
        right: whether each sample's answer is right.
        sound: whether its reasoning is, e.g. by `settled`; None where nobody judged it, and it leaves n. The reasoning
            of a wrong answer is not asked for.

    Returns:
        None where fewer than k samples are left.

    Raises:
        ValueError: the lengths differ, or k < 1.

    Source: CoT-Pass@K, arXiv:2506.14245.
    """
    if len(right) != len(sound):
        raise ValueError(f"{len(right)} answers but {len(sound)} judgements of reasoning")
    pairs = zip(right, sound, strict=True)
    known = [bool(judged) and answer for answer, judged in pairs if not answer or judged is not None]
    return pass_at_k(len(known), sum(known), k) if len(known) >= k else None


def settled(votes: Sequence[bool | None], rule: Literal["any", "majority", "all"] = "majority") -> bool | None:
    """One judgement out of several of the same thing; None where nobody voted, or half of the votes say either.

    Votes that are None, e.g. of a judge that failed, are left out.
    """
    cast = [vote for vote in votes if vote is not None]
    if not cast:
        return None
    if rule == "any":
        return any(cast)
    if rule == "all":
        return all(cast)
    return None if 2 * sum(cast) == len(cast) else 2 * sum(cast) > len(cast)


def majority_at_k(
    answers: Sequence[str | None], right: Sequence[bool], k: int, rng: np.random.Generator, *, num_draws: int = 4000
) -> float:
    """Chance that the most frequent answer among k of the n samples, drawn without replacement, is right.

    Every set of k is looked at where there are at most `num_draws`, else so many are drawn. Ties are broken evenly. A
    sample without an answer (None) casts no vote; if none votes, the vote is wrong.

    Args:
        answers: [n] in a canonical form: equal answers must be equal texts.
        right: [n] whether each is right; equal answers must agree.

    Raises:
        ValueError: unless 1 <= k <= n, the lengths are equal and equal answers agree.
    """
    if len(answers) != len(right) or not 1 <= k <= len(answers):
        raise ValueError(
            f"maj@k needs as many answers as judgements and 1 <= k <= n, got {len(answers)} and {len(right)}, k={k}"
        )
    is_right: dict[str | None, bool] = {}
    for answer, judged in zip(answers, right, strict=True):
        if answer is not None and is_right.setdefault(answer, judged) != judged:
            raise ValueError(f"the answer {answer!r:.100} is called both right and wrong, so no vote on it has a value")
    kinds = [*is_right, None]
    index = {kind: i for i, kind in enumerate(kinds)}
    labels = np.array([index[answer] for answer in answers])
    if math.comb(len(answers), k) <= num_draws:
        drawn = labels[np.array(list(itertools.combinations(range(len(answers)), k)))]
        counts = (drawn[:, :, None] == np.arange(len(kinds) - 1)).sum(axis=1)
    else:
        of_kind = np.bincount(labels, minlength=len(kinds))
        counts = rng.multivariate_hypergeometric(of_kind, k, size=num_draws)[:, :-1]
    if not is_right:
        return 0.0
    top = counts.max(axis=1, keepdims=True)
    winners = (counts == top) & (top > 0)
    rights = winners & np.array([is_right[kind] for kind in is_right])
    return float((rights.sum(axis=1) / np.maximum(winners.sum(axis=1), 1)).mean())


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


def mean_difference(
    ours: Sequence[float] | npt.NDArray[Any],
    theirs: Sequence[float] | npt.NDArray[Any],
    rng: np.random.Generator,
    *,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
) -> Estimate:
    """Mean of ours less mean of theirs, of independent values, with its bootstrap interval; `n` is the smaller number.

    Raises:
        ValueError: no values, or values that are not finite.
    """
    _normal_quantile(confidence)
    draws = []
    for values in (_finite(ours), _finite(theirs)):
        rows = max(1, 4_000_000 // len(values))
        pieces = [min(rows, num_resamples - start) for start in range(0, num_resamples, rows)]
        means = [values[rng.integers(len(values), size=(num, len(values)))].mean(axis=1) for num in pieces]
        draws.append(np.concatenate(means))
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws[0] - draws[1], [tail, 1 - tail])
    value = float(np.mean(ours) - np.mean(theirs))
    return Estimate(value, float(low), float(high), min(len(ours), len(theirs)), confidence)


def _normal_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _finite(values: Sequence[float] | npt.NDArray[Any]) -> Float64Array:
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or len(data) == 0 or not np.isfinite(data).all():
        raise ValueError(f"need a non-empty list of finite numbers, got {values!r:.200}; leave unscored samples out")
    return data
