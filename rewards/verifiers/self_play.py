"""Judges both roles of self-play: a problem somebody proposes for a given answer, and an answer to a problem."""

from __future__ import annotations

import ast
import re
from fractions import Fraction

from rewards.task import Task
from rewards.verdict import Status, Verdict
from rewards.verifiers.final_number import final_number, reference_number

ROLE, PROPOSER, SOLVER = "role", "proposer", "solver"
"""Key of a task's metadata and its values; a task without it is a solver's."""

MAX_LENGTH = 64
"""Characters of a proposed expression."""
MAX_TERMS = 8
EXPRESSION = re.compile(r"[0-9+*/() .\-]+")


def self_play(answer: str, task: Task, *, check: bool = True) -> Verdict:
    """Of a solver: 1.0 for the reference as the last number. Of a proposer: 1.0 for a valid problem, else 0.0.

    A valid problem is the first line that is an arithmetic expression of two terms or more, none of which is the
    answer itself. Its value has to be the answer, or what is asked for could not be found.

    Args:
        check: False takes that last condition away. Unsolvable problems are then valid, and with a proposer that is
            paid for failures they win.

    Returns:
        For a proposer `extras["question"]` holds the valid problem, `extras["reason"]` what is wrong with it;
        invalid_gold when the reference is not one number.

    Source: SSP, Alibaba-Quark/SSP, whose check is a model that answers from the proposer's documents.
    """
    if task.metadata.get(ROLE) != PROPOSER:
        return final_number(answer, task)
    expected = reference_number(task)
    if expected is None:
        return Verdict.unscored(Status.INVALID_GOLD, extras={"error": f"reference {task.reference!r} is no number"})
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    question = lines[0].rstrip(" .=?") if lines else ""
    if not question:
        return Verdict.floor(Status.NO_ANSWER)
    reason = _fault(question, expected, check)
    if reason is not None:
        return Verdict.scored(0.0, extras={"reason": reason})
    return Verdict.scored(1.0, extras={"question": question})


def _fault(question: str, expected: Fraction, check: bool) -> str | None:
    """Why a proposed problem is not valid; None when it is."""
    if len(question) > MAX_LENGTH or not EXPRESSION.fullmatch(question):
        return "not an arithmetic expression"
    try:
        terms: list[Fraction] = []
        value = _value(ast.parse(question, mode="eval").body, terms)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return "not an arithmetic expression"
    if not 2 <= len(terms) <= MAX_TERMS:
        return f"{len(terms)} terms"
    if expected in terms:
        return "contains the answer"
    return f"comes to {value}" if check and value != expected else None


def _value(node: ast.expr, terms: list[Fraction]) -> Fraction:
    """Exact value of + - * / over whole numbers; the numbers are added to `terms`.

    Raises:
        ValueError: anything else.
        ZeroDivisionError: a division by 0.
    """
    match node:
        case ast.Constant(value=int(number)):
            terms.append(Fraction(number))
            return terms[-1]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, terms)
        case ast.BinOp(left=left, op=operator, right=right):
            a, b = _value(left, terms), _value(right, terms)
            match operator:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
                case ast.Div():
                    return a / b
    raise ValueError("not + - * / over whole numbers")
