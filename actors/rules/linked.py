"""Linked groups: a proposer's problems become tasks, and each author is paid by what its solvers made of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from actors.ledger import LedgerRow
from actors.ports import DONORS_OF, LeasedTask
from actors.rules.actions import Action, Fork, Splice, Stash
from actors.rules.scores import success_rate
from rewards.task import Task
from rewards.trajectory import Group, Trajectory
from rewards.verdict import Verdict
from rewards.verifiers.self_play import PROPOSER, ROLE, SOLVER

PROPOSAL = "proposal"
"""Key of a solver task's metadata: the trajectory that wrote its problem."""


def fork_proposals(
    group: Group, leased: LeasedTask, row: LedgerRow | None, *, num: int, table: str
) -> tuple[Action, ...] | None:
    """The first `num` distinct valid problems of a proposer's group become tasks; their authors wait in a table.

    Other groups are left alone. A problem is what the verifier wrote into `extras["question"]`.

    Source: SSP, Alibaba-Quark/SSP; no pool of earlier problems, because a dropped group's ticket asks another answer.
    """
    if leased.task.metadata.get(ROLE) != PROPOSER:
        return None
    authors: dict[str, Trajectory] = {}
    for member in group.own_members:
        question = _question(member)
        if question is not None:
            authors.setdefault(question, member)
    chosen = dict(list(authors.items())[:num])
    if not chosen:
        return None
    forks = (Fork(_solver(leased.task, question, author)) for question, author in chosen.items())
    return (*forks, Stash(table, tuple(author.trajectory_id for author in chosen.values())))


def join_proposer(
    group: Group,
    leased: LeasedTask,
    row: LedgerRow | None,
    *,
    component: str | None,
    source: str,
    table: str,
    pay: Literal["failure", "spread"],
) -> Splice | None:
    """The author of a solver group's problem joins it, with the score its solvers' success rate s gives.

    failure: 1 - s; spread: 4 s (1 - s). So there is no score before the solver group is complete. Nobody joins where
    no solver could be judged or the author is not kept any more.

    Source: SSP, Alibaba-Quark/SSP.
    """
    name, rate = leased.task.metadata.get(PROPOSAL), success_rate(group, component)
    author = next((t for t in leased.donors.get(table, ()) if t.trajectory_id == name), None)
    if author is None or rate is None:
        return None
    score = 1.0 - rate if pay == "failure" else 4.0 * rate * (1.0 - rate)
    return Splice((author.with_verdict(Verdict.scored(score, extras={"solved": rate})),), ())


def _question(member: Trajectory) -> str | None:
    if member.verdict is None or member.score is None or member.score <= 0:
        return None
    question = member.verdict.extras.get("question")
    return question if isinstance(question, str) else None


def _solver(task: Task, question: str, author: Trajectory) -> Task:
    metadata = {**task.metadata, ROLE: SOLVER, PROPOSAL: author.trajectory_id, DONORS_OF: task.task_id}
    template = task.metadata.get("solve")
    prompt = template.format(expression=question) if isinstance(template, str) else question
    return replace(task, prompt=prompt, metadata=metadata, tags={**task.tags, ROLE: SOLVER})
