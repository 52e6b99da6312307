"""pass@k of a model on held-out tasks, with one engine in this process."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from actors.assembly import make_engine
from actors.engines.protocol import Engine, SamplingRequest
from actors.renderer import Renderer
from actors.reward_worker import RewardWorker
from orchestrator.config import RunConfig
from rewards.statistics import Estimate, accuracy, cot_pass_at_k, majority_at_k, mean, pass_at_k
from rewards.task import Task
from rewards.trajectory import PolicyVersion
from rewards.verdict import Status, Verdict
from rewards.verifiers.votes import Reading, reading


@dataclass(frozen=True, slots=True)
class AnsweredTask:
    """A held-out task with what a model said and what the judges said of it."""

    task: Task
    answers: tuple[str, ...]
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True)
class SplitResult:
    """Held-out tasks of one kind; estimates by k are means over tasks, without those that have fewer than k samples.

    Attributes:
        pass_at: at least one of k scored samples is right.
        unscored: samples nobody could judge.
        majority_at: the most frequent answer of k scored samples is right.
        cot_pass_at: at least one of k samples is right and so is its reasoning; those nobody judged are left out.
    """

    num_tasks: int
    pass_at: Mapping[int, Estimate]
    unscored: int
    majority_at: Mapping[int, Estimate] = field(default_factory=dict)
    cot_pass_at: Mapping[int, Estimate] = field(default_factory=dict)


async def evaluate_model(
    config: RunConfig,
    model_path: Path,
    tasks: Sequence[Task],
    *,
    ks: Sequence[int],
    num_samples: int,
    temperature: float,
    majority: Reading | None = None,
    reasoning: str | None = None,
) -> dict[str, SplitResult]:
    """Samples, judges and counts; one result for `all` tasks and one per value of the tag `evaluation.split_by`.

    Args:
        num_samples: answers per task, at least the largest of `ks`.
        temperature: 0 is greedy.
        majority: how an answer is read for maj@k (see `rewards.verifiers.votes`); None leaves it out.
        reasoning: reward component whose score above 0 means sound reasoning, for CoT-pass@k; None leaves it out.
    """
    answered = await answer_tasks(config, model_path, tasks, num_samples=num_samples, temperature=temperature)
    return by_split(answered, config.evaluation.split_by, ks, majority=majority, reasoning=reasoning)


async def answer_tasks(
    config: RunConfig, model_path: Path, tasks: Sequence[Task], *, num_samples: int, temperature: float
) -> list[AnsweredTask]:
    """The model's judged answers to the tasks."""
    engine, scoring = make_engine(config.rollout.engine), RewardWorker(config.reward)
    try:
        await scoring.start()
        await engine.start(str(model_path), PolicyVersion(0))
        renderer = Renderer(str(model_path), config.tasks.system_prompt)
        request = SamplingRequest(
            max_new_tokens=config.rollout.sampling.max_new_tokens,
            num_samples=num_samples,
            temperature=temperature,
            stop_token_ids=renderer.stop_token_ids,
            seed=config.seed,
        )
        limit = asyncio.Semaphore(max(1, config.rollout.engine.max_num_seqs // num_samples))
        return await asyncio.gather(*(_judged(engine, renderer, scoring, task, request, limit) for task in tasks))
    finally:
        await engine.close()
        await scoring.close()


async def _judged(
    engine: Engine,
    renderer: Renderer,
    scoring: RewardWorker,
    task: Task,
    request: SamplingRequest,
    limit: asyncio.Semaphore,
) -> AnsweredTask:
    async with limit:
        completions = await engine.generate(renderer.prompt_ids(task.messages), request)
    answers = tuple(renderer.decode(c.token_ids) for c in completions)
    return AnsweredTask(task, answers, tuple(await scoring.score(task, answers, ())))


def by_split(
    answered: Sequence[AnsweredTask],
    split_by: str | None,
    ks: Sequence[int],
    *,
    majority: Reading | None = None,
    reasoning: str | None = None,
) -> dict[str, SplitResult]:
    """See `evaluate_model`.

    Raises:
        ValueError: `reasoning` names no component of the verdicts.
    """
    splits: dict[str, list[AnsweredTask]] = defaultdict(list)
    for one in answered:
        splits["all"].append(one)
        if split_by is not None and split_by in one.task.tags:
            splits[one.task.tags[split_by]].append(one)
    return {name: _result(tasks, ks, majority, reasoning) for name, tasks in splits.items()}


def _result(
    tasks: Sequence[AnsweredTask], ks: Sequence[int], majority: Reading | None, reasoning: str | None
) -> SplitResult:
    scored = [[v for v in task.verdicts if v.score is not None] for task in tasks]
    counts = [(len(verdicts), sum(v.is_right for v in verdicts)) for verdicts in scored]
    estimates = {k: estimate for k in ks if (estimate := _estimate(counts, k)) is not None}
    return SplitResult(
        len(tasks),
        estimates,
        unscored=sum(len(task.verdicts) for task in tasks) - sum(map(len, scored)),
        majority_at={} if majority is None else _means(ks, lambda k: [_majority(task, majority, k) for task in tasks]),
        cot_pass_at={} if reasoning is None else _means(ks, lambda k: [_cot(task, reasoning, k) for task in tasks]),
    )


def _majority(task: AnsweredTask, read: Reading, k: int) -> float | None:
    """maj@k of one task; of answers that read alike the first one's verdict counts for all."""
    judged = [(a, v) for a, v in zip(task.answers, task.verdicts, strict=True) if v.score is not None]
    if len(judged) < k:
        return None
    values = [None if (value := reading(answer, read, "think")) is None else repr(value) for answer, _ in judged]
    is_right: dict[str | None, bool] = {}
    rights = [is_right.setdefault(value, v.is_right) for value, (_, v) in zip(values, judged, strict=True)]
    return majority_at_k(values, rights, k, np.random.default_rng(0))


def _cot(task: AnsweredTask, reasoning: str, k: int) -> float | None:
    scored = [v for v in task.verdicts if v.score is not None]
    return cot_pass_at_k([v.is_right for v in scored], [_is_sound(v, reasoning) for v in scored], k)


def _is_sound(verdict: Verdict, reasoning: str) -> bool | None:
    if reasoning in verdict.components:
        found = verdict.components[reasoning]
        return None if found is None else found > 0
    if verdict.status is not Status.SCORED or reasoning in verdict.extras.get("gated", ()):
        return None
    raise ValueError(f"no component {reasoning!r} judges the reasoning: the verdicts have {sorted(verdict.components)}")


def _means(ks: Sequence[int], values_at: Callable[[int], list[float | None]]) -> dict[int, Estimate]:
    found = {k: [value for value in values_at(k) if value is not None] for k in ks}
    return {k: _mean(values) for k, values in found.items() if values}


def _estimate(counts: Sequence[tuple[int, int]], k: int) -> Estimate | None:
    """From (scored, right) of each task: first one value per task, then their mean."""
    values = [pass_at_k(n, right, k) for n, right in counts if n >= k]
    return _mean(values) if values else None


def _mean(values: Sequence[float]) -> Estimate:
    """Where each task is a plain yes or no the interval is that of a share: resampling equal values would give none."""
    if set(values) <= {0.0, 1.0}:
        return accuracy(round(sum(values)), len(values))
    return mean(values, np.random.default_rng(0))
