"""Compares the whole answer with the reference, blind to white space."""

from __future__ import annotations

from rewards.task import Task
from rewards.verdict import Status, Verdict


def exact_match(answer: str, task: Task, *, case_sensitive: bool = True) -> Verdict:
    """1.0 when answer and reference are the same words, else 0.0; runs of white space count as one space.

    Returns:
        no_answer for a blank answer, invalid_gold for a missing or blank reference.
    """
    expected = " ".join((task.reference or "").split())
    if not expected:
        return Verdict.unscored(Status.INVALID_GOLD, extras={"error": "the task has no reference"})
    given = " ".join(answer.split())
    if not given:
        return Verdict.floor(Status.NO_ANSWER)
    if not case_sensitive:
        given, expected = given.casefold(), expected.casefold()
    return Verdict.scored(float(given == expected))
