"""Tasks that teach a model to judge, made of answers whose worth is known, and the verifiers of their verdicts.

A judge that is trained needs a rule that says whether its verdict is right: the label of a pair, the correctness of an
answer, the order of several. Source of the pairs' form: J1, arXiv:2505.10320; of recycling: SPARK, arXiv:2509.22624.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rewards.import_path import load_callable
from rewards.judges.prompts import DATA_NOTE, content_rng, fenced, question_of, rendered
from rewards.preferences import PreferencePair, with_wrong_number
from rewards.task import Task, TaskSet
from rewards.verdict import Status, Verdict
from rewards.verifiers import math_text

JUDGEMENT = "judgement"
"""Key of `Task.metadata` that holds the label a verdict should have; tasks without it are answered, not judged."""
SAID = "said"
"""Key of a verdict's extras that holds the answer, for rules, which see tokens only."""
DEPTH = "recycled"

PAIR_PROMPT = (
    f"{DATA_NOTE}\n\nQuestion:\n{{question}}\n\nAnswer A:\n{{a}}\n\nAnswer B:\n{{b}}\n\nWhich answer is better? Think, "
    "then end with \\boxed{A} or \\boxed{B}."
)
POINT_PROMPT = (
    f"{DATA_NOTE}\n\nQuestion:\n{{question}}\n\nAnswer:\n{{a}}\n\nIs the answer right? Think, then end with "
    "\\boxed{Yes} or \\boxed{No}."
)
REFLECTION_PROMPT = (
    "Question:\n{question}\n\nAn earlier answer:\n{a}\n\nCheck it. Then answer the question, with the right result."
)


def pair_task(pair: PreferencePair) -> Task:
    """Which of two answers is better, with the better one in a place drawn from the pair."""
    first = bool(content_rng("pair", pair.pair_id, pair.chosen, pair.rejected).integers(2))
    a, b = (pair.chosen, pair.rejected) if first else (pair.rejected, pair.chosen)
    question = question_of(Task(task_id=pair.pair_id, prompt=pair.messages))
    prompt = rendered(PAIR_PROMPT, {"question": fenced(question), "a": fenced(a), "b": fenced(b)})
    return Task(task_id=f"pair/{pair.pair_id}", prompt=prompt, metadata={JUDGEMENT: "A" if first else "B"})


def verdict_label(answer: str, task: Task, *, think_tag: str | None = "think") -> Verdict:
    """1.0 when the last box holds the task's label and nothing else, else 0.0; a verdict in prose is none.

    Source: J1, arXiv:2505.10320; R1-Reward, arXiv:2505.02835: the reward is verdict == label behind the format.
    """
    label = task.metadata.get(JUDGEMENT)
    if not isinstance(label, str):
        return Verdict.unscored(Status.INVALID_GOLD, extras={"error": f"the task has no metadata[{JUDGEMENT!r}]"})
    text = math_text.segment(answer, think_tag)
    said = None if text is None else math_text.last_box(text)
    if said is None:
        return Verdict.floor(Status.NO_ANSWER)
    return Verdict.scored(float(said.strip() == label), extras={"said_label": said.strip()[:20]})


def answer_or_label(answer: str, task: Task, *, verifier: str = "final_number", **options: Any) -> Verdict:
    """The verdict label of a judge's task, or what `verifier` says of any other; keeps the answer for `recycle`."""
    if JUDGEMENT in task.metadata:
        verdict = verdict_label(answer, task)
    else:
        from rewards.rubric import VERIFIERS

        verify = load_callable(VERIFIERS.get(verifier, verifier), purpose="verifier", known_names=VERIFIERS)
        result = verify(answer, task, **options)
        verdict = result if isinstance(result, Verdict) else Verdict.scored(float(result))
    return replace(verdict, extras={**verdict.extras, SAID: answer})


def recycled_task(
    task: Task, answers: Sequence[str], rights: Sequence[bool], rng: np.random.Generator, *, pair_share: float = 0.7
) -> Task | None:
    """One judge's task of a group's answers: a pair where some are right and some wrong (with `pair_share`), else one.

    Args:
        answers, rights: of the scored members only: an unscored answer has no label.

    Returns:
        None where nothing can be asked, e.g. of an empty answer.

    Source: SPARK, arXiv:2509.22624; InternLM/Spark, `reward_data_gen.py`.
    """
    good = [a for a, right in zip(answers, rights, strict=True) if right and a.strip()]
    bad = [a for a, right in zip(answers, rights, strict=True) if not right and a.strip()]
    question = question_of(task)
    if good and bad and rng.random() < pair_share:
        right, wrong = _drawn(good, rng), _drawn(bad, rng)
        pair = PreferencePair(pair_id=task.task_id, messages=task.messages, chosen=right, rejected=wrong)
        made = pair_task(pair)
        prompt, label = made.prompt, made.metadata[JUDGEMENT]
    else:
        pool = [(a, True) for a in good] + [(a, False) for a in bad]
        if good and bad:  # a class first, so that the labels are balanced whatever the group's rate
            wanted = bool(rng.integers(2))
            pool = [entry for entry in pool if entry[1] == wanted]
        if not pool:
            return None
        answer, is_right = pool[int(rng.integers(len(pool)))]
        prompt = rendered(POINT_PROMPT, {"question": fenced(question), "a": fenced(answer)})
        label = "Yes" if is_right else "No"
    digest = content_rng(prompt, label).integers(1 << 40)
    return Task(
        task_id=f"{task.task_id}/judge/{digest:x}",
        prompt=prompt,
        metadata={JUDGEMENT: label, DEPTH: 1},
        tags={**task.tags, "kind": "judge"},
    )


def reflection_task(task: Task, answer: str) -> Task:
    """The question again with an earlier answer to check; judged by the question's own verifier."""
    prompt = rendered(REFLECTION_PROMPT, {"question": fenced(question_of(task)), "a": fenced(answer)})
    digest = content_rng(prompt).integers(1 << 40)
    return replace(
        task,
        task_id=f"{task.task_id}/check/{digest:x}",
        prompt=prompt,
        expert=(),
        metadata={**task.metadata, DEPTH: 1},
        tags={**task.tags, "kind": "reflection"},
    )


def critique_order(answer: str, task: Task) -> Verdict:
    """+1.0 when the scores a critique ends with put the best answer strictly on top, else -1.0.

    The task holds `metadata["best"]`, the best answer's name; the critique ends with `{"scores": {name: 1 to 10}}`.

    Source: DeepSeek-GRM (SPCT), arXiv:2504.02495, the rule of its reinforcement learning.
    """
    best, found = task.metadata.get("best"), _last_scores(answer)
    if not isinstance(best, str):
        return Verdict.unscored(Status.INVALID_GOLD, extras={"error": 'the task has no metadata["best"]'})
    if best not in found or not all(1 <= score <= 10 for score in found.values()):
        return Verdict.scored(-1.0)
    return Verdict.scored(1.0 if all(found[best] > s for name, s in found.items() if name != best) else -1.0)


def ranking_reward(predicted: Mapping[str, float], gold: Mapping[str, float]) -> float:
    """max(0, 1 - cost / sum of weights) over all pairs, each weighing 1 + |gold gap|.

    A reversed pair costs its weight, a predicted tie on a decided pair half of it. Fewer than two common candidates
    earn nothing.

    Source: RewardAnything, arXiv:2506.03637; zhuohaoyu/RewardAnything, `processing.py`.
    """
    names = sorted(predicted.keys() & gold.keys())
    cost = total = 0.0
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            gap, said = gold[a] - gold[b], predicted[a] - predicted[b]
            weight = 1 + abs(gap)
            total += weight
            if gap != 0 and said == 0:
                cost += weight / 2
            elif gap * said < 0:
                cost += weight
    return max(0.0, 1 - cost / total) if total else 0.0


def first_error_reward(predicted: int | None, gold: int, num_steps: int) -> float:
    """What a judge of solutions earns for naming the first wrong step, -1 being none; None could not be read.

    gold -1: +1 if it says so, else -1. gold e: -1 if it names none, else 1 - |predicted - e| / num_steps.

    Source: FAPO, arXiv:2510.22543; verl-project/verl-recipe, `fapo/`.
    """
    if predicted is None:
        return -1.0
    if gold == -1:
        return 1.0 if predicted == -1 else -1.0
    return -1.0 if predicted == -1 else 1 - abs(predicted - gold) / num_steps


def sum_pairs(*, num_train: int = 4096, num_heldout: int = 256, seed: int = 0) -> TaskSet:
    """Judge's tasks about sums: a right answer and the same one with a wrong number."""
    from rewards.arithmetic import arithmetic_tasks  # two seconds to import

    made = arithmetic_tasks(num_train=num_train, num_heldout=num_heldout, seed=seed)
    rng = np.random.default_rng(seed)

    def pair(task: Task) -> Task:
        right = f"It is {task.reference}."
        return pair_task(
            PreferencePair(
                pair_id=task.task_id, messages=task.messages, chosen=right, rejected=with_wrong_number(right, rng)
            )
        )

    return TaskSet(train=tuple(map(pair, made.train)), heldout=tuple(map(pair, made.heldout)))


def _drawn(items: Sequence[str], rng: np.random.Generator) -> str:
    return items[int(rng.integers(len(items)))]


def _last_scores(text: str) -> dict[str, float]:
    """The whole-number scores of the last JSON object with `scores`; empty where there is none."""
    position = text.rfind('{"scores"')
    if position < 0:
        return {}
    try:
        data, _ = json.JSONDecoder().raw_decode(text, position)
    except (json.JSONDecodeError, RecursionError):
        return {}
    scores = data["scores"]
    if not isinstance(scores, Mapping):
        return {}
    return {name: s for name, s in scores.items() if isinstance(s, int) and not isinstance(s, bool)}
