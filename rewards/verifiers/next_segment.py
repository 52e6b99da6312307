"""Pays for saying how a text goes on, word for word."""

from __future__ import annotations

import re

from rewards.task import Task
from rewards.verdict import Status, Verdict
from rewards.verifiers.math_text import segment

WORD = re.compile(r"\w+")
MAX_WORDS = 4096


def next_segment(
    answer: str,
    task: Task,
    *,
    min_words: int = 4,
    partial: bool = False,
    answer_tag: str | None = None,
    think_tag: str | None = "think",
) -> Verdict:
    """1.0 when the words of the answer are the first words of the reference, else 0.0.

    The reference is what follows in the text, over one segment or more; case and punctuation do not count. The wording
    is compared, not the meaning: a rule for tests and for texts with one right continuation, and the part of a judge
    that cannot be talked into anything.

    Args:
        min_words: words an answer must get right to be paid, unless the reference is shorter.
        partial: pay the share of the reference's words that the answer gets right before its first wrong one; words
            beyond the reference count as wrong ones.
        answer_tag: the only `<tag>...</tag>` that is read; None reads all that follows the thinking.

    Returns:
        no_answer for no words, or not exactly one answer block; invalid_gold for a reference without words.

    Raises:
        ValueError: min_words < 1.

    Source: RLPT, arXiv:2509.19249, whose judge accepts a prefix of the next segments; here by exact words.
    """
    if min_words < 1:
        raise ValueError(f"next_segment: min_words={min_words} would pay for saying nothing; use at least 1")
    expected = _words(task.reference or "")
    if not expected:
        return Verdict.unscored(Status.INVALID_GOLD, extras={"error": "the task has no reference with words in it"})
    text = segment(answer, think_tag)
    if text is not None and answer_tag is not None:
        opening, closing = f"<{answer_tag}>", f"</{answer_tag}>"
        is_one_block = text.count(opening) == text.count(closing) == 1
        text = text.partition(opening)[2].partition(closing)[0] if is_one_block else None
    given = _words(text or "")
    if not given:
        return Verdict.floor(Status.NO_ANSWER)
    right = next(
        (i for i, (a, b) in enumerate(zip(given, expected, strict=False)) if a != b), min(len(given), len(expected))
    )
    extras = {"words": len(given), "right": right}
    if right < min(min_words, len(expected)):
        return Verdict.scored(0.0, extras=extras)
    if partial:
        return Verdict.scored(right / max(len(expected), len(given)), extras=extras)
    return Verdict.scored(float(right == len(given)), extras=extras)


def _words(text: str) -> list[str]:
    return [word.lower() for word in WORD.findall(text)][:MAX_WORDS]
