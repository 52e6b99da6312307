"""Self-play over given answers: the policy proposes a problem for each, and solves what it proposed."""

from __future__ import annotations

import numpy as np

from rewards.arithmetic import arithmetic_tasks
from rewards.task import Task, TaskSet
from rewards.templates import check_template
from rewards.verifiers.self_play import PROPOSER, ROLE

PROPOSE = "Write a sum or a difference of two numbers that comes to {answer}. Reply with only the expression."
SOLVE = "Calculate {expression}. Reply with only the number."
ANSWERS = range(-99, 199)
"""What two numbers below 100 can come to."""


def self_play_tasks(
    *, num_train: int, num_heldout: int, seed: int, propose_template: str = PROPOSE, prompt_template: str = SOLVE
) -> TaskSet:
    """Answers without problems to train on, and sums and differences with both to be judged by.

    Args:
        num_train: answers that are given; at most those of ANSWERS, in an order of the seed.
        propose_template: the proposer's turn, with `{answer}`.
        prompt_template: the solver's turn, with `{expression}`.

    Raises:
        ValueError: a malformed template, or more answers than there are.
    """
    check_template("tasks.options.propose_template", propose_template, required="answer")
    check_template("tasks.options.prompt_template", prompt_template, required="expression")
    if num_train > len(ANSWERS):
        raise ValueError(f"tasks.num_train={num_train}: source 'self_play' has {len(ANSWERS)} answers; ask for fewer")
    heldout = arithmetic_tasks(num_train=1, num_heldout=num_heldout, seed=seed, prompt_template=prompt_template).heldout
    order = np.random.default_rng(seed).permutation(len(ANSWERS))[:num_train]
    train = (_proposer(ANSWERS[int(i)], propose_template, prompt_template) for i in order)
    return TaskSet(train=tuple(train), heldout=heldout)


def _proposer(answer: int, propose: str, solve: str) -> Task:
    """The solver's turn travels with the task, because its problem does not exist yet."""
    return Task(
        task_id=f"self_play/{answer}",
        prompt=propose.format(answer=answer),
        reference=str(answer),
        metadata={ROLE: PROPOSER, "solve": solve},
        tags={ROLE: PROPOSER},
    )
