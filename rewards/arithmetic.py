"""The demo task: two-term sums and differences, half of them outside what the expert has seen.

The problems are draws of reasoning-gym's `chain_sum` with two terms of one or two digits. That generator gives both
operands the same number of digits, so the space is the pairs within 0..9 and the pairs within 10..99: 12,350 distinct
problems when a sum counts once whatever the order of its operands. A fixed number of draws per seed is made, repeats
are dropped, and the rest is put in an order that the seed decides, so the held-out problems do not depend on how many
training problems are asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import reasoning_gym

from rewards.task import ExpertResponse, Task, TaskSet
from rewards.templates import check_template

GENERATOR = "chain_sum"
GENERATOR_OPTIONS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
NUM_DRAWS = 1 << 16
"""Draws per seed; consecutive seeds share none. They meet about nine tenths of all problems."""
PROMPT_TEMPLATE = "Calculate {expression}. Reply with only the number."

Entry = dict[str, Any]
ProblemKey = tuple[int, str, int]


def arithmetic_tasks(
    *,
    num_train: int,
    num_heldout: int,
    seed: int,
    expert_max_operand: int = 59,
    expert_template: str = "{answer}",
    rejected_offset: int | None = None,
    prompt_template: str = PROMPT_TEMPLATE,
) -> TaskSet:
    """Training and held-out problems that share none, also not with the operands swapped.

    Every task is tagged `coverage`: "covered" when both operands are at most `expert_max_operand`, else "uncovered".
    Covered training tasks carry the expert's answer; the held-out tasks are half covered, half uncovered.

    Args:
        expert_template: the expert's text, with `{answer}` and, if wanted, `{expression}`.
        rejected_offset: beside the expert's answer stands a rejected one, wrong by this much: a recorded pair.
        prompt_template: the user turn, with `{expression}`.

    Raises:
        ValueError: num_heldout is odd, a template is malformed, or the draws hold too few distinct problems.
    """
    if num_heldout % 2:
        raise ValueError(f"tasks.num_heldout={num_heldout} must be even: half covered by the expert, half not")
    check_template("tasks.options.expert_template", expert_template, required="answer", optional=("expression",))
    check_template("tasks.options.prompt_template", prompt_template, required="expression")

    problems = _distinct_problems(seed)
    heldout: list[Entry] = []
    for is_covered in (True, False):
        matching = [p for p in problems if _is_covered(p, expert_max_operand) is is_covered]
        if len(matching) < num_heldout // 2:
            raise ValueError(
                f"tasks.num_heldout={num_heldout} with options.expert_max_operand={expert_max_operand}: only "
                f"{len(matching)} {_coverage(is_covered)} problems, {num_heldout // 2} needed"
            )
        heldout += matching[: num_heldout // 2]
    kept_aside = {_pair(problem) for problem in heldout}
    train = [problem for problem in problems if _pair(problem) not in kept_aside]
    if len(train) < num_train:
        raise ValueError(
            f"tasks.num_train={num_train}: only {len(train)} distinct problems are left beside num_heldout="
            f"{num_heldout}. Ask for fewer; groups sample a task many times."
        )

    def task(problem: Entry, *, with_expert: bool) -> Task:
        left, operator, right = problem_key(problem)
        fields = {"expression": problem["metadata"]["expression"], "answer": problem["answer"]}
        is_covered = _is_covered(problem, expert_max_operand)
        expert = (ExpertResponse(text=expert_template.format(**fields), author="reference"),)
        if rejected_offset is not None:
            wrong = {**fields, "answer": str(int(problem["answer"]) + rejected_offset)}
            expert += (ExpertResponse(text=expert_template.format(**wrong), author="reference", score=0.0),)
        return Task(
            task_id=f"arithmetic/{left}{operator}{right}",
            prompt=prompt_template.format(expression=fields["expression"]),
            reference=problem["answer"],
            metadata={"dataset": GENERATOR, "options": GENERATOR_OPTIONS, "entry": problem},
            expert=expert if with_expert and is_covered else (),
            tags={"coverage": _coverage(is_covered)},
        )

    return TaskSet(
        train=tuple(task(problem, with_expert=True) for problem in train[:num_train]),
        heldout=tuple(task(problem, with_expert=False) for problem in _shuffled(heldout, seed + 1)),
    )


def problem_key(problem: Entry) -> ProblemKey:
    """(left, operator, right); the operands of a sum in ascending order, because a + b and b + a are one problem."""
    left, operator, right = problem["metadata"]["expression"].split()
    operands = (int(left), int(right))
    if operator == "+":
        operands = (min(operands), max(operands))
    return operands[0], operator, operands[1]


def _pair(problem: Entry) -> ProblemKey:
    """Key that a - b and b - a share: different problems, but one must not stand in training while the other is held
    out."""
    left, operator, right = problem_key(problem)
    return min(left, right), operator, max(left, right)


def _distinct_problems(seed: int) -> list[Entry]:
    generator = reasoning_gym.create_dataset(GENERATOR, seed=seed * NUM_DRAWS, size=NUM_DRAWS, **GENERATOR_OPTIONS)
    distinct: dict[ProblemKey, Entry] = {}
    for index in range(NUM_DRAWS):
        problem = generator[index]
        distinct.setdefault(problem_key(problem), problem)
    return _shuffled(list(distinct.values()), seed)


def _shuffled(problems: list[Entry], seed: int) -> list[Entry]:
    return [problems[i] for i in np.random.default_rng(seed).permutation(len(problems))]


def _is_covered(problem: Entry, expert_max_operand: int) -> bool:
    left, _, right = problem_key(problem)
    return max(left, right) <= expert_max_operand


def _coverage(is_covered: bool) -> str:
    return "covered" if is_covered else "uncovered"
