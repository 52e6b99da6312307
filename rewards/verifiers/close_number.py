"""Pays for the last number of an answer by its distance from the reference."""

from __future__ import annotations

import re
from fractions import Fraction

from rewards.task import Task
from rewards.verdict import Status, Verdict
from rewards.verifiers.final_number import MAX_DIGITS, NUMBER, TooLongNumberError, exact_value

LAST_VALUE = re.compile(rf"(?:{NUMBER.pattern})(?:\s*/\s*(?P<below>[0-9]+))?", re.VERBOSE)
EPSILON = Fraction(1, 10**6)
UNREADABLE = (TooLongNumberError, ZeroDivisionError)


def close_number(answer: str, task: Task, *, partial: bool = True) -> Verdict:
    """1 - min(|a - b|, 1) / 2 - min(|a - b| / (|b| + 1e-6), 1) / 2 for the last value a and the reference b.

    A value is a number or a fraction `p/q`; both are exact rationals, and so is the distance.

    Args:
        partial: False pays 1.0 for the exact value and nothing else.

    Returns:
        no_answer without a number, rejected for one of more than 4,000 digits or with the denominator 0, invalid_gold
        when the reference is no such value.

    Source: RandomCalculation, arXiv:2507.10532 (digest; the formula from memory).
    """
    try:
        expected = _last_value(task.reference or "")
    except UNREADABLE:
        expected = None
    if expected is None:
        return Verdict.unscored(Status.INVALID_GOLD, extras={"error": f"reference {task.reference!r} is not a value"})
    try:
        given = _last_value(answer)
    except UNREADABLE as error:
        return Verdict.floor(Status.REJECTED, extras={"error": str(error)})
    if given is None:
        return Verdict.floor(Status.NO_ANSWER)
    distance = abs(given - expected)
    if not partial:
        return Verdict.scored(float(distance == 0))
    relative = min(distance / (abs(expected) + EPSILON), Fraction(1))
    return Verdict.scored(float(1 - min(distance, Fraction(1)) / 2 - relative / 2), extras={"exact": distance == 0})


def _last_value(text: str) -> Fraction | None:
    """The last number or fraction of a text; None without one.

    Raises:
        TooLongNumberError, ZeroDivisionError: it cannot be turned into a number.
    """
    last = None
    for last in LAST_VALUE.finditer(text):  # noqa: B007 - only the final match is wanted
        pass
    if last is None:
        return None
    below = last["below"] or "1"
    if len(below) > MAX_DIGITS:
        raise TooLongNumberError(f"a denominator with {len(below)} digits; the limit is {MAX_DIGITS}")
    if int(below) == 0:
        raise ZeroDivisionError("a fraction with the denominator 0")
    return exact_value(last) / int(below)
