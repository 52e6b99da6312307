"""Penalises text that says the same thing again."""

from __future__ import annotations

from rewards.task import Task
from rewards.verdict import Verdict


def repetition(answer: str, task: Task, *, ngram: int = 3, max_penalty: float = 1.0) -> Verdict:
    """Penalty in [-max_penalty, 0]: -(1 - unique / total) x max_penalty over n-grams of lower-cased words.

    Text shorter than one n-gram earns 0. Synonyms in a cycle pass: watch the compression ratio beside it.

    Raises:
        ValueError: ngram < 1 or max_penalty < 0.
    """
    if ngram < 1 or max_penalty < 0:
        raise ValueError(f"repetition: ngram={ngram} must be at least 1 and max_penalty={max_penalty} at least 0")
    words = answer.lower().split()
    total = len(words) - ngram + 1
    if total < 1:
        return Verdict.scored(0.0)
    unique = len(set(zip(*(words[i:] for i in range(ngram)), strict=False)))
    return Verdict.scored(-(1 - unique / total) * max_penalty, extras={"unique": unique, "total": total})
