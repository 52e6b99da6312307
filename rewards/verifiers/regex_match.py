"""Searches an answer for a pattern."""

from __future__ import annotations

import re

from rewards.task import Task
from rewards.verdict import Status, Verdict

ANSWER_GROUP = "answer"


def regex_match(answer: str, task: Task, *, pattern: str | None = None, ignore_case: bool = False) -> Verdict:
    """1.0 when the answer matches, else 0.0.

    Args:
        pattern: searched in the answer. With a group named `answer`, the group's text in the last match is compared
            with the reference, blind to white space. Without a pattern, the task's reference is one that must match
            the whole stripped answer.

    Returns:
        no_answer for a blank answer or when the `answer` group is nowhere found; invalid_gold when the reference is
        missing or, as a pattern, malformed.

    Raises:
        ValueError: the option `pattern` is malformed.
    """
    flags = re.DOTALL | (re.IGNORECASE if ignore_case else 0)
    if not answer.strip():
        return Verdict.floor(Status.NO_ANSWER)
    if pattern is None:
        return _match_reference(answer, task, flags)
    try:
        compiled = re.compile(pattern, flags)
    except re.error as error:
        raise ValueError(f"regex_match: pattern {pattern!r} is malformed: {error}") from error
    if ANSWER_GROUP in compiled.groupindex:
        return _compare_group(compiled, answer, task)
    return Verdict.scored(float(compiled.search(answer) is not None))


def _match_reference(answer: str, task: Task, flags: int) -> Verdict:
    if not task.reference:
        return Verdict.unscored(Status.INVALID_GOLD, extras={"error": "neither a pattern nor a reference"})
    try:
        expected = re.compile(task.reference, flags)
    except re.error as error:
        return Verdict.unscored(Status.INVALID_GOLD, extras={"error": f"reference is a malformed pattern: {error}"})
    return Verdict.scored(float(expected.fullmatch(answer.strip()) is not None))


def _compare_group(pattern: re.Pattern[str], answer: str, task: Task) -> Verdict:
    if not (task.reference or "").strip():
        return Verdict.unscored(Status.INVALID_GOLD, extras={"error": "the task has no reference"})
    found = [match[ANSWER_GROUP] for match in pattern.finditer(answer) if match[ANSWER_GROUP] is not None]
    if not found:
        return Verdict.floor(Status.NO_ANSWER)
    return Verdict.scored(float(found[-1].split() == (task.reference or "").split()))
