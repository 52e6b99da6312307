"""Corrects the scores of programs by what became of their revisions, and makes preferences and weights of them.

Pure functions over trees of attempts: a node is one attempt, its children are revisions of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


def trace_back(scores: Mapping[str, float | None], parents: Mapping[str, str]) -> dict[str, float | None]:
    """Scores after each parent took the mean of its scored children, from the leaves up.

    A parent without a scored child keeps its own score; an unscored node with scored children gets theirs.

    Args:
        scores: by node; None where no test bench gave a verdict.
        parents: the parent of each node that has one.

    Raises:
        ValueError: a node or parent has no entry in `scores`, or the parents form a circle.

    Source: VeriRL, "trace-back based rescore"; read in a third party's notes.
    """
    if missing := sorted((parents.keys() | set(parents.values())) - scores.keys()):
        raise ValueError(f"nodes {missing[:5]} stand in parents but have no score: give None for what was not judged")
    children: dict[str, list[str]] = {}
    for child, parent in parents.items():
        children.setdefault(parent, []).append(child)
    rescored: dict[str, float | None] = {}
    for root in scores.keys() - parents.keys():
        order, open_nodes = [], [root]
        while open_nodes:
            node = open_nodes.pop()
            order.append(node)
            open_nodes += children.get(node, [])
        for node in reversed(order):
            below = [score for child in children.get(node, []) if (score := rescored[child]) is not None]
            rescored[node] = math.fsum(below) / len(below) if below else scores[node]
    if circle := sorted(scores.keys() - rescored.keys()):
        raise ValueError(f"nodes {circle[:5]} are their own ancestors")
    return {node: rescored[node] for node in scores}


def preference_pairs(
    scores: Mapping[str, float | None], *, min_gap: float = 0.4, min_chosen: float = 0.8, min_rejected: float = 0.0
) -> list[tuple[str, str]]:
    """(chosen, rejected) of all scored nodes with r_c > r_r + min_gap, r_c > min_chosen and r_r > min_rejected.

    Source: VeriRL; the bounds 0.4, 0.8 and 0 are its own, as read in a third party's notes.
    """
    scored = [(node, score) for node, score in scores.items() if score is not None]
    return [
        (better, worse)
        for better, high in scored
        for worse, low in scored
        if high > low + min_gap and high > min_chosen and low > min_rejected
    ]


@dataclass(frozen=True, slots=True)
class BalancedWeights:
    """Factors of the policy term and of the KL term of one sample."""

    policy: float
    kl: float


def sample_balanced_weights(
    probabilities: Sequence[float], rewards: Sequence[float], *, mean_probability: float, mean_reward: float
) -> list[BalancedWeights]:
    """Weights that hold back samples which are both likely and well paid already.

    policy = max(P / mean P, R / mean R);  kl = min(P / mean P, R / mean R)

    Args:
        probabilities: of each sample's sequence under the policy, in [0, 1].
        rewards: of each sample, at least 0.
        mean_probability, mean_reward: running means over earlier samples.

    Raises:
        ValueError: lengths differ, or a mean is not above 0.

    Source: VeriRL, "sample-balanced weighting"; read in a third party's notes.
    """
    if not (mean_probability > 0 and mean_reward > 0):
        raise ValueError(
            f"running means must be above 0, got {mean_probability} and {mean_reward}: skip the first batch"
        )
    ratios = [(p / mean_probability, r / mean_reward) for p, r in zip(probabilities, rewards, strict=True)]
    return [BalancedWeights(policy=max(pair), kl=min(pair)) for pair in ratios]
