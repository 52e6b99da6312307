"""Rewards without a reference: what the group of answers says itself. These verifiers see all answers at once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Literal

from rewards.task import Task
from rewards.verdict import Status, Verdict
from rewards.verifiers import final_number, math_text, math_values

Reading = Literal["math", "last_number", "whole"]


def majority_vote(
    answers: Sequence[str],
    task: Task,
    *,
    read: Reading = "math",
    min_votes: int = 2,
    num_voters: int | None = None,
    think_tag: str | None = "think",
) -> list[Verdict]:
    """1.0 for each answer that says what most of the group say, else 0.0; of equally many the first said wins.

    It confirms whatever the policy says most often, right or wrong: watch `extras["share"]` across prompts, and stop
    when unrelated prompts agree on one answer.

    Args:
        read: where an answer is found: the last box, the last number, or all of the text.
        min_votes: answers that must be readable, or nobody is judged.
        num_voters: only the first so many vote; all are judged by the result.

    Returns:
        no_answer for an answer nobody can read, which has no vote; invalid_gold for the others of a group with fewer
        than `min_votes` votes. A group of one answer, as in an evaluation, is compared with the task's reference.

    Raises:
        ValueError: min_votes < 1 or num_voters < 1.

    Source: TTRL, arXiv:2504.16084, section 3.
    """
    if min_votes < 1 or (num_voters is not None and num_voters < 1):
        raise ValueError(f"majority_vote: min_votes={min_votes} and num_voters={num_voters} must be at least 1")
    readings = [reading(answer, read, think_tag) for answer in answers]
    if len(answers) == 1 and task.reference is not None:
        winner = reading(_boxed(task.reference, read), read, None)
        extras = {"compared_with": "reference"}
    else:
        votes = Counter(value for value in readings[:num_voters] if value is not None)
        if votes.total() < min_votes:
            return [_undecided(value, votes.total(), min_votes) for value in readings]
        winner, count = votes.most_common(1)[0]
        extras = {"share": count / votes.total(), "votes": votes.total()}
    return [
        Verdict.floor(Status.NO_ANSWER) if value is None else Verdict.scored(float(value == winner), extras=extras)
        for value in readings
    ]


def answer_frequency(
    answers: Sequence[str],
    task: Task,
    *,
    read: Reading = "math",
    entropy_weight: float = 0.75,
    think_tag: str | None = "think",
) -> list[Verdict]:
    """Share of the group that says the same, minus a weight times the normalised entropy of what it says.

    r = count / n - entropy_weight * H / ln(#distinct);  H in nats, 0 with one distinct answer

    n counts unreadable answers as well, and they are one of the distinct ones, but they earn no share. The entropy is
    the same for the whole group, so a baseline of the group's mean removes it.

    Source: TTRV, Akshit21112002/TTRV, `ttt_metrics.py`; unreadable answers are ours.
    """
    readings = [reading(answer, read, think_tag) for answer in answers]
    counts = Counter(readings)
    shares = [count / len(readings) for count in counts.values()]
    entropy = -sum(share * math.log(share) for share in shares)
    penalty = entropy_weight * entropy / math.log(len(shares)) if len(shares) > 1 else 0.0
    return [
        Verdict.scored(
            (counts[value] / len(readings) if value is not None else 0.0) - penalty, extras={"entropy": entropy}
        )
        for value in readings
    ]


def reading(answer: str, read: Reading, think_tag: str | None) -> Hashable | None:
    """What an answer says, in a form in which equal values are equal; None when nothing can be read.

    Values that need algebra to be seen equal count as different ones.

    Raises:
        ValueError: no such way of reading.
    """
    if read not in ("math", "last_number", "whole"):
        raise ValueError(f"read={read!r} must be 'math', 'last_number' or 'whole'")
    text = math_text.segment(answer, think_tag)
    if text is None:
        return None
    if read == "whole":
        return " ".join(text.split()) or None
    if read == "last_number":
        match = final_number.last_number(text)
        text = match[0] if match else ""
    else:
        text = math_text.last_box(text) or ""
    if math_text.is_blank(text):
        return None
    try:
        math_text.check_guards(text)
        surface = math_text.surface(text)
    except math_text.RejectedError:
        return None
    try:
        value = math_values.read(surface)
    except (math_text.RejectedError, math_values.UnreadableError):
        return surface
    if isinstance(value, math_values.Number) and value.unit is None and not value.is_percent:
        return value.value
    return value


def _boxed(reference: str, read: Reading) -> str:
    """The reference in a form `reading` finds its value in."""
    if final_number.REFERENCE_MARKER in reference:
        reference = reference.rpartition(final_number.REFERENCE_MARKER)[2].strip()
    return reference if read != "math" or math_text.BOX.search(reference) else rf"\boxed{{{reference}}}"


def _undecided(value: Hashable | None, votes: int, min_votes: int) -> Verdict:
    if value is None:
        return Verdict.floor(Status.NO_ANSWER)
    error = f"{votes} readable answers in the group, fewer than min_votes={min_votes}"
    return Verdict.unscored(Status.INVALID_GOLD, extras={"error": error})
