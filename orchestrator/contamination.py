"""Probes for held-out tasks that a model has seen: it goes on with part of a problem, and answers fresh twins."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actors.assembly import make_engine
from actors.engines.protocol import Engine, SamplingRequest
from actors.renderer import Renderer
from orchestrator.config import RunConfig
from orchestrator.evaluate_model import AnsweredTask, answer_tasks
from rewards.config import TaskConfig
from rewards.contamination import cut, is_completed, overlap
from rewards.statistics import Estimate, accuracy, mean, mean_difference
from rewards.task import Task
from rewards.tasks import load_tasks, problem_id
from rewards.trajectory import PolicyVersion

GENERATORS = ("arithmetic", "reasoning_gym")
"""Sources that make further problems of the same kind."""
TWIN_SEED_OFFSET = 1_000_003
"""Added to the seed of the tasks; far from the seeds people choose."""
MIN_HIDDEN_WORDS = 3
"""A shorter rest is guessed rather than remembered."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One measure on the held-out tasks and on twins nobody can have seen; `twins` is None where none can be made."""

    name: str
    ours: Estimate
    twins: Estimate | None
    reading: str


async def find_contamination(
    config: RunConfig, model_path: Path, tasks: Sequence[Task], *, share: float = 0.6
) -> list[Probe]:
    """Compares the held-out tasks with fresh twins in three ways.

    *Completion*: the model goes on with the first `share` of the problem's words, as plain text and greedily; counted
    is whether it writes the rest, and how much of it. *Accuracy*: greedy, one answer each. A model that has learned the
    kind of problem fares equally on both; one that remembers these problems does better on them.

    Source: partial-prompt completion as in Reasoning or Memorization?, arXiv:2507.10532.
    """
    twins = fresh_twins(config.tasks, tasks)
    completed = await complete(config, model_path, [*tasks, *twins], share=share)
    ours, theirs = completed[: len(tasks)], completed[len(tasks) :]
    probes = []
    if any(one is not None for one in ours):
        probes.append(_probe(f"words of the rest written, after {share:.0%}", *_values(ours, theirs, "overlap")))
        probes.append(_probe(f"rest written exactly, after {share:.0%}", *_values(ours, theirs, "is_exact")))
    answered = await answer_tasks(config, model_path, [*tasks, *twins], num_samples=1, temperature=0.0)
    rights = [_rights(answered[: len(tasks)]), _rights(answered[len(tasks) :])]
    if rights[0]:
        probes.append(_probe("right answers", *rights))
    return probes


@dataclass(frozen=True, slots=True)
class Completion:
    """How well a model went on with a problem."""

    overlap: float
    is_exact: bool


async def complete(
    config: RunConfig, model_path: Path, tasks: Sequence[Task], *, share: float
) -> list[Completion | None]:
    """Per task; None where the hidden rest has fewer than MIN_HIDDEN_WORDS words."""
    engine = make_engine(config.rollout.engine)
    try:
        await engine.start(str(model_path), PolicyVersion(0))
        renderer = Renderer(str(model_path), config.tasks.system_prompt)
        limit = asyncio.Semaphore(config.rollout.engine.max_num_seqs)
        room = config.rollout.engine.max_model_len
        return await asyncio.gather(*(_completed(engine, renderer, limit, task, share, room) for task in tasks))
    finally:
        await engine.close()


async def _completed(
    engine: Engine, renderer: Renderer, limit: asyncio.Semaphore, task: Task, share: float, room: int
) -> Completion | None:
    text = str(task.messages[-1]["content"])
    shown, hidden = cut(text, share) if " " in text else (text, "")
    if len(hidden.split()) < MIN_HIDDEN_WORDS:
        return None
    shown_ids, hidden_ids = (renderer.answer_ids(part)[:-1] for part in (shown.rstrip(" "), hidden))
    num_new = min(2 * len(hidden_ids) + 8, room - len(shown_ids))
    if num_new < len(hidden_ids):
        return None
    request = SamplingRequest(max_new_tokens=num_new, temperature=0.0, stop_token_ids=renderer.stop_token_ids)
    async with limit:
        (completion,) = await engine.generate(shown_ids, request)
    continuation = renderer.decode(completion.token_ids)
    return Completion(overlap(hidden, continuation), is_completed(hidden, continuation))


def fresh_twins(config: TaskConfig, tasks: Sequence[Task]) -> list[Task]:
    """As many problems of the same generator with another seed, none of which is among the tasks; empty for others."""
    if config.source not in GENERATORS:
        return []
    made = load_tasks(config.model_copy(update={"seed": config.seed + TWIN_SEED_OFFSET}))
    known = {problem_id(task) for task in tasks}
    return [task for task in made.heldout if problem_id(task) not in known][: len(tasks)]


def _values(
    ours: Sequence[Completion | None], theirs: Sequence[Completion | None], name: str
) -> tuple[list[float], list[float]]:
    first, second = ([float(getattr(one, name)) for one in side if one is not None] for side in (ours, theirs))
    return first, second


def _rights(answered: Sequence[AnsweredTask]) -> list[float]:
    return [float(v.is_right) for one in answered for v in one.verdicts if v.score is not None]


def _probe(name: str, ours: list[float], twins: list[float]) -> Probe:
    if not twins:
        return Probe(name, _estimate(ours), None, "no fresh twins to compare with")
    gap = mean_difference(ours, twins, np.random.default_rng(0))
    sign = "a sign of contamination" if gap.low > 0 else "no sign"
    return Probe(
        name, _estimate(ours), _estimate(twins), f"{sign}: difference {gap.value:.3f} [{gap.low:.3f}, {gap.high:.3f}]"
    )


def _estimate(values: list[float]) -> Estimate:
    if set(values) <= {0.0, 1.0}:
        return accuracy(round(sum(values)), len(values))
    return mean(values, np.random.default_rng(0))
