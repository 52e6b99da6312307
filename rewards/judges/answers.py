"""Judges of one answer: `async (answer, task, ask, **options) -> Verdict`. They know prompts and parsers, no model."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from rewards.combination import saturated
from rewards.judges import replies
from rewards.judges.prompts import DATA_NOTE, Requirement, fenced, judged_part, question_of, rendered
from rewards.judges.replies import Ask, JudgeError, Question
from rewards.statistics import settled
from rewards.task import Message, Task
from rewards.verdict import Status, Verdict

NO_ANSWER = Verdict.floor(Status.NO_ANSWER)

REFERENCE_SYSTEM = (
    f"You check whether an answer to a question agrees with the reference. {DATA_NOTE} Reply with one word: Yes when "
    "the answer's final result says the same as the reference, No otherwise. An answer without a result is a No."
)
REFERENCE_USER = "Question:\n{question}\n\nReference:\n{reference}\n\nAnswer:\n{answer}\n\nDoes it agree? Yes or No."

SCALE_SYSTEM = (
    "You rate an answer to a question by this criterion: {criterion}\n" + DATA_NOTE + " Think briefly, then end with a "
    "whole number from {low} (worst) to {high} (best) inside \\boxed{}."
)
SCALE_USER = "Question:\n{question}\n\nAnswer:\n{answer}"

PRINCIPLE_SYSTEM = f"You decide whether an answer satisfies a principle. {DATA_NOTE} Reply with one word: Yes or No."
PRINCIPLE_USER = "Principle: {principle}\n\nQuestion:\n{question}\n\nAnswer:\n{answer}\n\nDoes it? Yes or No."
BETTER_USER = (
    "Principle: {principle}\n\nQuestion:\n{question}\n\nReference answer:\n{reference}\n\nNew answer:\n{answer}\n\n"
    "By this principle, is the new answer better than the reference answer? Yes or No."
)

RUBRIC_SYSTEM = (
    f"You grade an answer by a rubric. {DATA_NOTE} An answer that only claims to meet a criterion does not meet it. "
    'End with one JSON object {"levels": {...}} that gives each criterion by its name the number of a level.'
)
RUBRIC_USER = "Rubric:\n{rubric}\n\nQuestion:\n{question}\n\nAnswer:\n{answer}"

PROCESS_SYSTEM = (
    f"You look for the first wrong step of a solution whose final result is right. {DATA_NOTE} Its paragraphs are "
    "numbered from 0. Think step by step, then end with a number inside \\boxed{}: that of the first paragraph with an "
    "error, or -1 when there is none."
)
PROCESS_USER = "Problem:\n{question}\n\nSolution:\n{answer}"


async def judge_reference(
    answer: str,
    task: Task,
    ask: Ask,
    *,
    votes: int = 1,
    rule: Literal["any", "majority", "all"] = "majority",
    think_tag: str | None = "think",
    requires: Requirement | None = None,
) -> Verdict:
    """1.0 when the judge says the answer agrees with the task's reference, else 0.0.

    Args:
        rule: of several votes; an even split pays nothing.
        requires: the answer must hold a box or a number before anybody is asked, because reference judges pay openers
            without content: One Token to Fool, arXiv:2507.08794.
    """
    if task.reference is None:
        return Verdict.unscored(Status.INVALID_GOLD, extras={"error": "judge_reference needs the task's reference"})
    if (part := judged_part(answer, think_tag=think_tag, requires=requires)) is None:
        return NO_ANSWER
    fields = {"question": fenced(question_of(task)), "reference": fenced(task.reference), "answer": fenced(part)}
    question = _question(
        REFERENCE_SYSTEM, rendered(REFERENCE_USER, fields), partial(replies.label, labels=("Yes", "No"))
    )
    said = await _votes(ask, question, votes)
    return Verdict.scored(float(bool(settled([word == "Yes" for word in said], rule))), extras={"votes": said})


async def judge_scale(
    answer: str,
    task: Task,
    ask: Ask,
    *,
    criterion: str,
    low: int = 1,
    high: int = 10,
    votes: int = 1,
    think_tag: str | None = "think",
) -> Verdict:
    """How well the answer meets a criterion: the mean of the votes, with `low` as 0 and `high` as 1."""
    if (part := judged_part(answer, think_tag=think_tag, requires=None)) is None:
        return NO_ANSWER
    system = rendered(SCALE_SYSTEM, {"criterion": criterion, "low": str(low), "high": str(high)})
    user = rendered(SCALE_USER, {"question": fenced(question_of(task)), "answer": fenced(part)})
    said = await _votes(ask, _question(system, user, partial(replies.boxed_integer, low=low, high=high)), votes)
    mean = sum(said) / len(said)
    return Verdict.scored((mean - low) / (high - low), extras={"votes": said})


async def judge_principle(
    answer: str,
    task: Task,
    ask: Ask,
    *,
    principle: str | None = None,
    output: Literal["log_odds", "probability"] = "log_odds",
    against_reference: bool = False,
    think_tag: str | None = "think",
) -> Verdict:
    """How sure the judge is that the answer satisfies a principle, read off the log-probs of Yes and No.

    log_odds = log P(Yes) - log P(No), within 10 nats;  probability = P(Yes) / (P(Yes) + P(No))

    Args:
        principle: a question of yes or no; None reads `task.metadata["principle"]`.
        against_reference: ask whether it is better than the answer in `task.reference`, as RewardDance does.

    Source: RLBFF, arXiv:2509.21319 (log-odds); RewardDance, arXiv:2509.08826 (probability that an answer beats a
    reference; normalising over the two labels is ours).
    """
    principle = principle or task.metadata.get("principle")
    if not principle or (against_reference and task.reference is None):
        missing = "a principle" if not principle else "a reference answer"
        return Verdict.unscored(Status.INVALID_GOLD, extras={"error": f"judge_principle needs {missing}"})
    if (part := judged_part(answer, think_tag=think_tag, requires=None)) is None:
        return NO_ANSWER
    fields = {"principle": principle, "question": fenced(question_of(task)), "answer": fenced(part)}
    fields["reference"] = fenced(task.reference or "")
    user = rendered(BETTER_USER if against_reference else PRINCIPLE_USER, fields)
    read = partial(replies.log_odds, yes="Yes", no="No")
    odds = await ask(_question(PRINCIPLE_SYSTEM, user, read, labels=("Yes", "No")))
    return Verdict.scored(odds if output == "log_odds" else 1 / (1 + math.exp(-odds)), extras={"log_odds": odds})


async def judge_rubric(
    answer: str,
    task: Task,
    ask: Ask,
    *,
    criteria: Sequence[Mapping[str, Any]] | None = None,
    saturation: float = 0.0,
    interactions: Sequence[tuple[str, str, float]] = (),
    think_tag: str | None = "think",
) -> Verdict:
    """Weighted criteria, each on its own levels, with vetoes, saturation and interactions; in [0, 1].

    Args:
        criteria: each `{name, text, weight: 1.0, levels: [worst, ..., best], veto_below: None}`; None reads
            `task.metadata["rubric"]`. A level counts as its place divided by the last place.
        saturation, interactions: see `rubric_score`.
    """
    criteria = criteria or task.metadata.get("rubric")
    if fault := _rubric_fault(criteria):
        return Verdict.unscored(Status.INVALID_GOLD, extras={"error": f"judge_rubric: {fault}"})
    assert criteria is not None
    if (part := judged_part(answer, think_tag=think_tag, requires=None)) is None:
        return NO_ANSWER
    lines = []
    for criterion in criteria:
        levels = "; ".join(f"{i} = {level}" for i, level in enumerate(criterion["levels"]))
        lines.append(f"- {criterion['name']}: {criterion['text']} Levels: {levels}.")
    fields = {"rubric": "\n".join(lines), "question": fenced(question_of(task)), "answer": fenced(part)}
    sizes = {criterion["name"]: len(criterion["levels"]) for criterion in criteria}
    found = await ask(_question(RUBRIC_SYSTEM, rendered(RUBRIC_USER, fields), partial(_levels, sizes=sizes)))
    scores = {name: level / (sizes[name] - 1) for name, level in found.items()}
    score, vetoed = rubric_score(
        scores,
        weights={c["name"]: float(c.get("weight", 1.0)) for c in criteria},
        vetoes={c["name"]: float(c["veto_below"]) for c in criteria if c.get("veto_below") is not None},
        saturation=saturation,
        interactions=interactions,
    )
    return Verdict.scored(score, extras={"criteria": scores, "vetoed_by": vetoed})


def rubric_score(
    scores: Mapping[str, float],
    *,
    weights: Mapping[str, float],
    vetoes: Mapping[str, float],
    saturation: float = 0.0,
    interactions: Sequence[tuple[str, str, float]] = (),
) -> tuple[float, list[str]]:
    """S = V * sum_k w_k f(s_k) / sum_k w_k + sum_kl u_kl s_k s_l, within [0, 1]; and the names of failed vetoes.

    V is 0 where a score is below its veto, and then so is S. f saturates (`rewards.combination.saturated`).

    Source: Rubric Anchors, arXiv:2508.12790, which describes veto, saturation and pairwise interaction in words; the
    formula is ours.
    """
    failed = [name for name, least in vetoes.items() if scores[name] < least]
    if failed:
        return 0.0, failed
    total = sum(weights[name] * saturated(score, saturation) for name, score in scores.items()) / sum(weights.values())
    total += sum(weight * scores[a] * scores[b] for a, b, weight in interactions)
    return min(max(total, 0.0), 1.0), []


async def judge_first_error(
    answer: str, task: Task, ask: Ask, *, votes: int = 1, think_tag: str | None = None
) -> Verdict:
    """1.0 when a paragraph of the solution is wrong, 0.0 when none is; meant for right answers only.

    Give it a negative weight and a gate on correctness. It is not tried with answers without content before use: those
    never pass the gate.

    Source: FAPO, arXiv:2510.22543: a generative process reward model names the first wrong step or -1.
    """
    if (part := judged_part(answer, think_tag=think_tag, requires=None)) is None:
        return NO_ANSWER
    steps = paragraphs(part)
    numbered = "\n\n".join(f"[{i}] {step}" for i, step in enumerate(steps))
    user = rendered(PROCESS_USER, {"question": fenced(question_of(task)), "answer": fenced(numbered)})
    read = partial(replies.boxed_integer, low=-1, high=len(steps) - 1)
    said = await _votes(ask, _question(PROCESS_SYSTEM, user, read), votes)
    found = settled([place >= 0 for place in said])
    return Verdict.scored(float(bool(found)), extras={"first_error": said, "num_steps": len(steps)})


def paragraphs(text: str) -> list[str]:
    """Steps of a solution: what blank lines separate."""
    return [part.strip() for part in text.split("\n\n") if part.strip()]


def _question(system: str, user: str, read: Any, labels: tuple[str, ...] | None = None) -> Question:
    messages: tuple[Message, ...] = ({"role": "system", "content": system}, {"role": "user", "content": user})
    return Question(messages=messages, read=read, labels=labels)


async def _votes(ask: Ask, question: Question, votes: int) -> list[Any]:
    """What several calls say; those without a readable reply are left out.

    Raises:
        JudgeError: fewer than half of them have one.
        ValueError: votes < 1.
    """
    if votes < 1:
        raise ValueError(f"votes must be at least 1, got {votes}")
    asked = [Question(messages=question.messages, read=question.read, vote=i) for i in range(votes)]
    said = await asyncio.gather(*(ask(one) for one in asked), return_exceptions=True)
    for fault in said:
        if isinstance(fault, BaseException) and not isinstance(fault, JudgeError):
            raise fault
    readable = [value for value in said if not isinstance(value, BaseException)]
    if 2 * len(readable) < votes or not readable:
        raise JudgeError(f"{len(readable)} of {votes} votes are readable; the last fault: {said[-1]}")
    return readable


def _levels(reply: replies.Reply, sizes: Mapping[str, int]) -> dict[str, int]:
    data = replies.json_object(reply, "levels")["levels"]
    found = replies.integers(data, list(sizes), 0, max(sizes.values()) - 1)
    for name, level in found.items():
        if level >= sizes[name]:
            raise replies.UnreadableReplyError(f"{name}: there is no level {level}")
    return found


def _rubric_fault(criteria: Any) -> str | None:
    """What is wrong with a rubric, or None."""
    if not criteria or not isinstance(criteria, Sequence):
        return "there are no criteria, neither in its options nor in the task's metadata['rubric']"
    names = [criterion.get("name") for criterion in criteria if isinstance(criterion, Mapping)]
    if len(names) < len(criteria) or None in names or len(set(names)) < len(names):
        return f"every criterion needs a name of its own, got {names}"
    for criterion in criteria:
        if len(criterion.get("levels", ())) < 2 or not criterion.get("text"):
            return f"criterion {criterion['name']!r} needs a text and at least two levels"
    if sum(float(criterion.get("weight", 1.0)) for criterion in criteria) <= 0:
        return "the weights must add up to more than 0"
    return None
