"""Compares the last number of an answer with the reference, exactly."""

from __future__ import annotations

import re
from fractions import Fraction

from rewards.task import Task
from rewards.verdict import Status, Verdict

MAX_DIGITS = 4000
"""Longest literal that is turned into a number; reading a longer one costs more than linear time."""
MAX_EXPONENT = 4000

NUMBER = re.compile(
    r"""
    (?P<sign>(?<![\w)\]])[-+\N{MINUS SIGN}])?          # after a digit or a bracket it is an operator, not a sign
    [$€£]?
    (?P<digits>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|(?<![0-9.])\.[0-9]+)
    (?:[eE](?P<exponent>[-+]?[0-9]+))?
    """,
    re.VERBOSE,
)
MARKER = re.compile(r"####|\banswer\s*(?:is|:|=)", re.IGNORECASE)
ANOTHER_VALUE = re.compile(r"\s*(?:,|;|/|\bor\b|\band\b)\s*(?=[-+\N{MINUS SIGN}$€£]*\.?[0-9])", re.IGNORECASE)
REFERENCE_MARKER = "####"


class TooLongNumberError(ValueError):
    """A literal beyond the guards; it is not turned into a number."""


def final_number(answer: str, task: Task, *, strict: bool = False) -> Verdict:
    """1.0 when the last number in the answer equals the reference exactly, else 0.0.

    Numbers are exact rationals: "5.0" equals "5", "1,234" equals "1234", and there is no tolerance. Commas separate
    groups of three digits only, so "15, 16" are two numbers. A worked reference ending in `#### N` stands for N.

    Args:
        strict: only the first number after the last answer marker (`####`, "answer is", "answer:") counts. What
            follows it is ignored, except that a list of alternatives ("15, 16 or 17") is wrong.

    Returns:
        no_answer when there is no number (strict: no marker), rejected when the literal has more than 4,000 digits,
        invalid_gold when the reference is not one number.
    """
    expected = reference_number(task)
    if expected is None:
        return Verdict.unscored(
            Status.INVALID_GOLD, extras={"error": f"reference {task.reference!r} is not one number"}
        )
    match = _marked_number(answer) if strict else last_number(answer)
    if match is None:
        return Verdict.floor(Status.NO_ANSWER)
    if strict and ANOTHER_VALUE.match(answer, match.end()):
        return Verdict.scored(0.0, extras={"reason": "several values after the answer marker"})
    try:
        return Verdict.scored(float(exact_value(match) == expected))
    except TooLongNumberError as error:
        return Verdict.floor(Status.REJECTED, extras={"error": str(error)})


def reference_number(task: Task) -> Fraction | None:
    """The number a task's reference stands for; None when it holds none, or several and no `####` marker."""
    if task.reference is None:
        return None
    numbers = list(NUMBER.finditer(task.reference.rpartition(REFERENCE_MARKER)[2]))
    if len(numbers) != 1:
        return None
    try:
        return exact_value(numbers[0])
    except TooLongNumberError:
        return None


def last_number(answer: str) -> re.Match[str] | None:
    """The last number of a text, whatever stands around it."""
    last = None
    for last in NUMBER.finditer(answer):  # noqa: B007 - only the final match is wanted
        pass
    return last


def _marked_number(answer: str) -> re.Match[str] | None:
    last = None
    for last in MARKER.finditer(answer):  # noqa: B007 - only the final match is wanted
        pass
    return NUMBER.search(answer, last.end()) if last else None


def exact_value(match: re.Match[str]) -> Fraction:
    """The number a match of NUMBER spells.

    Raises:
        TooLongNumberError: more digits, or a larger exponent, than the guards allow.
    """
    digits, exponent = match["digits"].replace(",", ""), match["exponent"] or "0"
    if len(digits) > MAX_DIGITS:
        raise TooLongNumberError(f"a number with {len(digits)} digits; the limit is {MAX_DIGITS}")
    if len(exponent) > len(str(MAX_EXPONENT)) + 1 or abs(int(exponent)) > MAX_EXPONENT:
        raise TooLongNumberError(f"an exponent of {exponent[:12]}; the limit is {MAX_EXPONENT}")
    value = Fraction(f"{digits}e{exponent}")
    return -value if match["sign"] in ("-", "\N{MINUS SIGN}") else value
