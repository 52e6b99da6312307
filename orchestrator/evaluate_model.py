"""pass@k of a model on held-out tasks, with one engine in this process."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actors.assembly import make_engine
from actors.engines.protocol import Engine, SamplingRequest
from actors.renderer import Renderer
from actors.reward_worker import RewardWorker
from orchestrator.config import RunConfig
from rewards.statistics import Estimate, accuracy, mean, pass_at_k
from rewards.task import Task
from rewards.trajectory import PolicyVersion
from rewards.verdict import Verdict


@dataclass(frozen=True, slots=True)
class SplitResult:
    """Held-out tasks of one kind.

    Attributes:
        pass_at: k to the mean over tasks; a task with fewer than k scored samples is left out.
        unscored: samples nobody could judge.
    """

    num_tasks: int
    pass_at: Mapping[int, Estimate]
    unscored: int


async def evaluate_model(
    config: RunConfig,
    model_path: Path,
    tasks: Sequence[Task],
    *,
    ks: Sequence[int],
    num_samples: int,
    temperature: float,
) -> dict[str, SplitResult]:
    """Samples, judges and counts; one result for `all` tasks and one per value of the tag `evaluation.split_by`.

    Args:
        num_samples: answers per task, at least the largest of `ks`.
        temperature: 0 is greedy.
    """
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
        verdicts = await asyncio.gather(*(_judged(engine, renderer, scoring, task, request, limit) for task in tasks))
    finally:
        await engine.close()
        await scoring.close()
    return _by_split(list(zip(tasks, verdicts, strict=True)), config.evaluation.split_by, ks)


async def _judged(
    engine: Engine,
    renderer: Renderer,
    scoring: RewardWorker,
    task: Task,
    request: SamplingRequest,
    limit: asyncio.Semaphore,
) -> list[Verdict]:
    async with limit:
        completions = await engine.generate(renderer.prompt_ids(task.messages), request)
    return await scoring.score(task, [renderer.decode(c.token_ids) for c in completions], ())


def _by_split(
    judged: Sequence[tuple[Task, list[Verdict]]], split_by: str | None, ks: Sequence[int]
) -> dict[str, SplitResult]:
    splits: dict[str, list[list[Verdict]]] = defaultdict(list)
    for task, verdicts in judged:
        splits["all"].append(verdicts)
        if split_by is not None and split_by in task.tags:
            splits[task.tags[split_by]].append(verdicts)
    return {name: _result(verdicts, ks) for name, verdicts in splits.items()}


def _result(tasks: Sequence[list[Verdict]], ks: Sequence[int]) -> SplitResult:
    scored = [[v for v in verdicts if v.score is not None] for verdicts in tasks]
    counts = [(len(verdicts), sum(v.is_right for v in verdicts)) for verdicts in scored]
    estimates = {k: estimate for k in ks if (estimate := _estimate(counts, k)) is not None}
    return SplitResult(len(tasks), estimates, unscored=sum(map(len, tasks)) - sum(map(len, scored)))


def _estimate(counts: Sequence[tuple[int, int]], k: int) -> Estimate | None:
    """From (scored, right) of each task: first one value per task, then their mean.

    Where every task is a plain yes or no the interval is that of a share: resampling equal values would give none.
    """
    values = [pass_at_k(n, right, k) for n, right in counts if n >= k]
    if not values:
        return None
    if set(values) <= {0.0, 1.0}:
        return accuracy(round(sum(values)), len(values))
    return mean(values, np.random.default_rng(0))
