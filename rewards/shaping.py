"""Formulas of published rewards beyond verifiers and judges: numbers in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Sequence


def renorm(process: float, outcome: float) -> float:
    """r_p + r_o - 1: the sign follows the outcome, so well-rated steps of a failed episode still cost.

    Args:
        process: [0, 1] rating of a step or an answer.
        outcome: 0 or 1.

    Source: PPR, arXiv:2509.25598; the form from public reviews.
    """
    return process + outcome - 1.0


def judgement_rewards(
    is_right: bool, judgements: Sequence[tuple[bool, float]], *, threshold: float = 0.5, limit: float = 0.3
) -> float:
    """What an agent's own judgements of its search results add to its outcome, within +-limit together.

    Right answer and Yes: +0.1. Wrong answer and Yes: -0.025 for information close to the reference, -0.05 otherwise.
    No: -0.05 for information that was close, +0.02 otherwise.

    Args:
        judgements: (said Yes, similarity of the information to the reference) for each search.

    Source: ReSeek, arXiv:2510.00568; TencentBAC/ReSeek, `reseek_rerank.py`. The limit is ours: else judging without end
    would pay.
    """
    total = 0.0
    for says_yes, similarity in judgements:
        is_close = similarity >= threshold
        if says_yes:
            total += 0.1 if is_right else (-0.025 if is_close else -0.05)
        else:
            total += -0.05 if is_close else 0.02
    return min(max(total, -limit), limit)


def regularised_relevance(
    relevance: float, answer: str, prompt: str, *, most: float = 2.0, copied: float = 0.8
) -> float:
    """Relevance x length incentive x repetition penalty, for open questions.

    The incentive is words / 100, at most `most`; the penalty is the share of distinct word triples. Sentences whose
    triples stand in the prompt to more than `copied` do not count as words: relevance alone is earned by copying the
    question.

    Source: R3, "Regularized relevance" (abstract and a third party's notes); the caps are ours.
    """
    known = set(_triples(prompt.split()))
    kept: list[str] = []
    for sentence in answer.replace("?", ".").replace("!", ".").split("."):
        triples = _triples(sentence.split())
        if not triples or sum(triple in known for triple in triples) / len(triples) <= copied:
            kept += sentence.split()
    triples = _triples(kept)
    distinct = len(set(triples)) / len(triples) if triples else 1.0
    return relevance * min(len(kept) / 100, most) * distinct


def scaled_advantage_factor(
    similarity: float,
    mean_difference: float,
    mean_gap: float,
    mean_reward: float,
    *,
    low: float = 0.5,
    high: float = 2.0,
) -> float:
    """How much a sample's advantage counts: hardness of the data times responsiveness of the model.

    a_D = sigmoid(1 - similarity) / sigmoid(mean_difference);  a_M = sigmoid(mean_gap) / sigmoid(mean_reward); each
    within [low, high].

    Source: DR-IRL, arXiv:2503.18991; definitions from a third party's notes, the bounds are ours.
    """
    hardness = _sigmoid(1 - similarity) / _sigmoid(mean_difference)
    response = _sigmoid(mean_gap) / _sigmoid(mean_reward)
    return min(max(hardness, low), high) * min(max(response, low), high)


def flow_token_rewards(deviations: Sequence[float], *, scale: float = 0.01, threshold: float = 0.6) -> list[float]:
    """Penalties of an answer's tokens by how far a flow model finds their hidden states off the path of good text.

    Deviations are brought to [0, 1] within the answer; those up to the threshold cost nothing. Equal deviations cost
    nothing.

    Args:
        deviations: [T] of the flow model, averaged over the tapped layers.

    Source: RLFR, arXiv:2510.10201; Jinghaoleven/RLFR.
    """
    if not deviations:
        return []
    low, high = min(deviations), max(deviations)
    if high - low <= 0:
        return [0.0] * len(deviations)
    levels = [(value - low) / (high - low) for value in deviations]
    return [-scale * level if level > threshold else 0.0 for level in levels]


def intrinsic_reward(label: float, count: int, *, weight: float = 0.4, power: float = 1.0) -> float:
    """weight * label / count^power: a message that was praised is worth less each time it comes again.

    Args:
        label: what an annotator says of the message; 0 where it has said nothing yet.
        count: how often the message has occurred in the episode, this time included.

    Raises:
        ValueError: count < 1.

    Source: ONI, arXiv:2410.23022; facebookresearch/oni.
    """
    if count < 1:
        raise ValueError(f"this occurrence counts too, so count must be at least 1, got {count}")
    return weight * label / count**power


def _triples(words: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + 3]) for i in range(len(words) - 2)]


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))
