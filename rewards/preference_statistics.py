"""How well scores agree with preferences: of a policy, a reward model or a judge. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rewards.statistics import Estimate, accuracy, mean


@dataclass(frozen=True, slots=True)
class RankingAccuracy:
    """Share of pairs in the right order; `dropped` pairs had a log-prob or score that is no number."""

    estimate: Estimate
    dropped: int = 0


def ranking_accuracy(chosen: Sequence[float], rejected: Sequence[float]) -> RankingAccuracy:
    """Share of pairs in which the policy finds the chosen answer at least as likely as the rejected one.

    Args:
        chosen, rejected: [pairs] nats, log-prob of the whole answer.

    Raises:
        ValueError: the lengths differ, or no pair is left.

    Source: Preference Learning Algorithms Do Not Learn Preference Rankings, arXiv:2405.19534.
    """
    kept = _finite_pairs(chosen, rejected)
    return RankingAccuracy(accuracy(sum(a >= b for a, b in kept), len(kept)), len(chosen) - len(kept))


def idealised_ranking_accuracy(reference_gaps: Sequence[float], agreement: Sequence[float], beta: float) -> float:
    """Ceiling of `ranking_accuracy`: what the optimum of the KL-regularised objective would reach.

    The optimal policy prefers the chosen answer by reference_gap + ln(a / (1 - a)) / beta nats, so a pair that the
    reference has in the wrong order by more stays wrong however long one trains.

    Args:
        reference_gaps: [pairs] nats, reference log-prob of the chosen answer less that of the rejected one.
        agreement: [pairs] share of annotators that prefer the chosen one, strictly between 0 and 1.
        beta: strength of the KL penalty.

    Raises:
        ValueError: values outside their range.

    Source: as `ranking_accuracy`; the formula is the closed form of the optimum of DPO's objective, arXiv:2305.18290.
    """
    if not reference_gaps or len(reference_gaps) != len(agreement):
        raise ValueError(f"need one agreement per pair, got {len(reference_gaps)} gaps and {len(agreement)} shares")
    if beta <= 0 or not all(0 < share < 1 for share in agreement):
        raise ValueError(f"beta must be above 0 and shares lie strictly between 0 and 1, got beta={beta}")
    pairs = zip(reference_gaps, agreement, strict=True)
    return sum(gap + math.log(share / (1 - share)) / beta > 0 for gap, share in pairs) / len(reference_gaps)


def pair_accuracy(chosen: Sequence[float], rejected: Sequence[float], rng: np.random.Generator) -> RankingAccuracy:
    """Share of pairs a reward model or judge scores in the right order; a tie counts one half.

    Raises:
        ValueError: the lengths differ, or no pair is left.
    """
    kept = _finite_pairs(chosen, rejected)
    values = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in kept]
    if set(values) <= {0.0, 1.0}:  # resampling equal values would give an interval without width
        estimate = accuracy(round(sum(values)), len(values))
    else:
        estimate = mean(values, rng)
    return RankingAccuracy(estimate, len(chosen) - len(kept))


def position_consistency(forward: Sequence[str | None], swapped: Sequence[str | None]) -> float:
    """Share of pairs in which the same answer wins in both orders.

    Args:
        forward: [pairs] "first", "second" or "tie", with answer a shown first; None where the judge failed.
        swapped: [pairs] the same with b shown first, so that a consistent judge says the opposite.

    Raises:
        ValueError: the lengths differ, or no pair was judged in both orders.
    """
    if len(forward) != len(swapped):
        raise ValueError(f"{len(forward)} verdicts in one order but {len(swapped)} in the other")
    opposite = {"first": "second", "second": "first", "tie": "tie"}
    both = [(a, b) for a, b in zip(forward, swapped, strict=True) if a is not None and b is not None]
    if not both:
        raise ValueError("no pair was judged in both orders")
    return sum(opposite[a] == b for a, b in both) / len(both)


def brier_score(probabilities: Sequence[float], outcomes: Sequence[bool]) -> float:
    """Mean squared error of probabilities of being right: 0 is perfect, 0.25 what a constant one half gets.

    Raises:
        ValueError: the lengths differ, nothing was judged, or a probability outside [0, 1].
    """
    data, labels = _probabilities(probabilities, outcomes)
    return float(np.mean((data - labels) ** 2))


def expected_calibration_error(probabilities: Sequence[float], outcomes: Sequence[bool], num_bins: int = 10) -> float:
    """Mean distance of stated probability and observed share over equally wide bins, weighted by their size.

    Raises:
        ValueError: as `brier_score`.

    Source: Guo et al., arXiv:1706.04599, section 2.
    """
    data, labels = _probabilities(probabilities, outcomes)
    bins = np.minimum((data * num_bins).astype(int), num_bins - 1)
    gaps = [abs(data[bins == b].mean() - labels[bins == b].mean()) * (bins == b).sum() for b in set(bins.tolist())]
    return float(sum(gaps) / len(data))


def _finite_pairs(chosen: Sequence[float], rejected: Sequence[float]) -> list[tuple[float, float]]:
    if len(chosen) != len(rejected):
        raise ValueError(f"{len(chosen)} chosen but {len(rejected)} rejected answers")
    kept = [(a, b) for a, b in zip(chosen, rejected, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if not kept:
        raise ValueError(f"none of {len(chosen)} pairs has two finite values, so there is nothing to rank")
    return kept


def _probabilities(probabilities: Sequence[float], outcomes: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    data, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    if data.ndim != 1 or data.shape != labels.shape or len(data) == 0 or not ((data >= 0) & (data <= 1)).all():
        raise ValueError(f"need one outcome for each probability in [0, 1], got {len(data)} and {len(labels)}")
    return data, labels
