"""Compares the boxed answer of a mathematical text with the reference."""

from __future__ import annotations

from typing import Literal

from rewards.task import Task
from rewards.verdict import Status, Verdict
from rewards.verifiers import final_number, math_text, math_values


def math_answer(
    answer: str,
    task: Task,
    *,
    think_tag: str | None = "think",
    fallback: Literal["none", "last_number", "whole"] = "none",
) -> Verdict:
    """1.0 when the last box of the answer equals the reference under the policy AE-1 to AE-16, else 0.0.

    The reference is a worked solution with a box, one ending in `#### N`, or the bare value. `metadata["answer_type"]
    = "choice"` compares option labels. Sets no alarm of its own: run it where a hung process can be killed.

    Args:
        think_tag: text up to the last `</tag>` is not looked at; None looks at everything.
        fallback: what to read when there is no box: nothing, the last number, or the whole text (for bare answers).

    Returns:
        no_answer without a closed, filled box; rejected when a guard refuses the candidate; invalid_gold when the
        reference cannot be read.
    """
    gold_text = _gold(task)
    if gold_text is None:
        return Verdict.unscored(Status.INVALID_GOLD, extras={"error": "the task has no readable reference"})
    candidate = _candidate(answer, think_tag, fallback)
    if candidate is None or math_text.is_blank(candidate):
        return Verdict.floor(Status.NO_ANSWER)
    if task.metadata.get("answer_type") == "choice":
        return Verdict.scored(float(math_values.is_choice(candidate.strip(), gold_text.strip())))
    try:
        math_text.check_guards(gold_text)
        gold_surface = math_text.surface(gold_text)
        gold = math_values.read(gold_surface)
        if isinstance(gold, math_values.Expression):
            math_values.equal(gold, math_values.Expression("0"))  # reads it once, so that its faults are the gold's
    except (math_text.RejectedError, math_values.UnreadableError) as error:
        fault = f"reference {gold_text[:200]!r} cannot be read: {error}"
        return _verbatim(candidate, gold_text) or Verdict.unscored(Status.INVALID_GOLD, extras={"error": fault})
    try:
        math_text.check_guards(candidate)
        given = math_text.surface(candidate)
        if given == gold_surface:
            return Verdict.scored(1.0)
        return Verdict.scored(float(math_values.equal(gold, math_values.read(given))))
    except math_text.RejectedError as error:
        return Verdict.floor(Status.REJECTED, extras={"error": str(error)})
    except math_values.UnreadableError as error:
        return Verdict.scored(0.0, extras={"reason": str(error)})


def _verbatim(candidate: str, gold_text: str) -> Verdict | None:
    """A right answer to a reference that no parser reads is still right when it is the same text."""
    same = len(candidate) <= math_text.MAX_LENGTH and candidate.strip() == gold_text.strip()
    return Verdict.scored(1.0) if same else None


def _gold(task: Task) -> str | None:
    reference = task.reference or ""
    if "\\boxed" in reference or "\\fbox" in reference:
        reference = math_text.last_box(reference) or ""
    elif final_number.REFERENCE_MARKER in reference:
        reference = reference.rpartition(final_number.REFERENCE_MARKER)[2]
    return None if math_text.is_blank(reference) else reference


def _candidate(answer: str, think_tag: str | None, fallback: str) -> str | None:
    text = math_text.segment(answer, think_tag)
    if text is None:
        return None
    if math_text.BOX.search(text):
        return math_text.last_box(text)
    if fallback == "last_number":
        match = final_number.last_number(text)
        return match[0] if match else None
    return text if fallback == "whole" else None
