"""Checks that an answer is one thinking block followed by one answer block."""

from __future__ import annotations

from rewards.task import Task
from rewards.verdict import Verdict


def format_tags(answer: str, task: Task, *, think_tag: str = "think", answer_tag: str = "answer") -> Verdict:
    """1.0 when the text is one thinking block, optional blanks and one answer block, each tag exactly once; else 0.0.

    Meant as a component with `gate` set to the correctness component, so that form alone earns nothing. Linear in
    the text: tags are counted and located, nothing backtracks.
    """
    text = answer.strip()
    tags = [f"<{think_tag}>", f"</{think_tag}>", f"<{answer_tag}>", f"</{answer_tag}>"]
    if any(text.count(tag) != 1 for tag in tags):
        return Verdict.scored(0.0)
    think_open, think_close, answer_open, answer_close = (text.index(tag) for tag in tags)
    in_order = think_open < think_close < answer_open < answer_close
    at_the_ends = think_open == 0 and answer_close + len(tags[3]) == len(text)
    blank_between = not text[think_close + len(tags[1]) : answer_open].strip()
    return Verdict.scored(float(in_order and at_the_ends and blank_between))
