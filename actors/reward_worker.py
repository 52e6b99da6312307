"""Scores the answers of a group in killable children. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rewards.config import RewardConfig
from rewards.isolation import ChildPool
from rewards.task import Task
from rewards.trajectory import Trajectory
from rewards.verdict import Status, Verdict
from rewards.verifiers.length import SAMPLE_FACTS

CACHED_STATUSES = frozenset({Status.SCORED, Status.NO_ANSWER, Status.REJECTED})
"""Verdicts that say something about the answer alone; the others say something about this moment."""
MAX_CACHED = 1 << 16
UNSCORED_WINDOW = 256
"""Samples over which the unscored fraction is watched; it is judged once a quarter of the window is filled."""


class TooManyUnscoredError(RuntimeError):
    """So many samples have no score that training would go on with a biased rest."""


class RewardWorker:
    """Gives each answer a verdict.

    Consumes: a task with its answers. Produces: one verdict per answer, in order. Waits for: a free child.
    Unblocked by: the children's verdicts, or their time limit.
    """

    def __init__(self, config: RewardConfig, *, window: int = UNSCORED_WINDOW) -> None:
        self._config = config
        self._pool = ChildPool(config)
        self._rubric_id = json.dumps(config.model_dump(mode="json", include={"components", "floor", "clip"}))
        self._cache: OrderedDict[bytes, Verdict] = OrderedDict()
        self._recent_unscored: deque[bool] = deque(maxlen=window)
        self._statuses: Counter[Status] = Counter()
        self._num_cached = 0
        self._seconds = 0.0
        self._last_error = ""

    async def start(self) -> None:
        """Starts the children; without it the first calls do.

        Raises:
            ChildStartError: a verifier cannot be imported or is misconfigured.
        """
        await self._pool.start()

    async def score(self, task: Task, answers: Sequence[str], trajectories: Sequence[Trajectory]) -> list[Verdict]:
        """One verdict per answer, in order. Equal answers of the same length in tokens are judged once.

        Args:
            trajectories: the samples the answers are the text of, for verifiers that need their length in tokens;
                empty when there are none to speak of, as in an evaluation.

        Raises:
            ValueError: there are trajectories, but not one per answer.
            TooManyUnscoredError: more than `max_unscored_fraction` of the recent samples have no score.
        """
        if trajectories and len(answers) != len(trajectories):
            raise ValueError(f"task {task.task_id!r}: {len(answers)} answers but {len(trajectories)} trajectories")
        tasks = [with_sample_facts(task, trajectory) for trajectory in trajectories] or [task] * len(answers)
        samples = list(zip(answers, tasks, strict=True))
        keys = [self._key(answer, sample_task) for answer, sample_task in samples]
        distinct = dict(zip(keys, samples, strict=True))
        judged = await asyncio.gather(*(self._judge(key, *sample) for key, sample in distinct.items()))
        by_key = dict(zip(distinct, judged, strict=True))
        verdicts = [by_key[key] for key in keys]
        self._count(verdicts)
        return verdicts

    async def _judge(self, key: bytes, answer: str, task: Task) -> Verdict:
        cached = self._cache.get(key)
        if cached is not None:
            self._cache.move_to_end(key)
            self._num_cached += 1
            return replace(cached, extras={**cached.extras, "cached": True}, seconds=0.0)
        verdict = await self._pool.judge(answer, task)
        self._seconds += verdict.seconds
        if verdict.status in CACHED_STATUSES:
            self._cache[key] = verdict
            if len(self._cache) > MAX_CACHED:
                self._cache.popitem(last=False)
        return verdict

    def _key(self, answer: str, task: Task) -> bytes:
        """Hash of all a verdict may depend on; the verifiers' code does not change while this process lives.

        A task that cannot be written down is like no other: the pool says what is wrong with it.
        """
        prompt = task.prompt if isinstance(task.prompt, str) else [dict(message) for message in task.prompt]
        content = [self._rubric_id, task.task_id, prompt, task.reference, task.metadata, answer]
        try:
            text = json.dumps(content, default=repr)
        except (TypeError, ValueError, RecursionError):
            return secrets.token_bytes(32)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

    def _count(self, verdicts: Sequence[Verdict]) -> None:
        for verdict in verdicts:
            self._statuses[verdict.status] += 1
            if verdict.score is None:
                self._last_error = f"{verdict.status.value}: {_error_of(verdict.extras)}"
            if verdict.status is not Status.CANCELLED:  # the run's own doing
                self._recent_unscored.append(verdict.score is None)
        if reason := self._too_many_unscored():
            raise TooManyUnscoredError(reason)

    def _too_many_unscored(self) -> str | None:
        """Why the run should stop, or None; silent until a quarter of the window is filled."""
        seen, fraction = len(self._recent_unscored), self._unscored_fraction()
        if 4 * seen < (self._recent_unscored.maxlen or 0) or fraction <= self._config.max_unscored_fraction:
            return None
        statuses = ", ".join(f"{status.value} {count}" for status, count in self._statuses.most_common())
        return (
            f"{fraction:.0%} of the last {seen} samples have no score, more than reward.max_unscored_fraction="
            f"{self._config.max_unscored_fraction}; training on the rest would be biased. Statuses so far: {statuses}. "
            f"The last failure was {self._last_error}. Fix the verifier or the references, or raise the limit."
        )

    def _unscored_fraction(self) -> float:
        return sum(self._recent_unscored) / max(len(self._recent_unscored), 1)

    async def stats(self) -> dict[str, Any]:
        """Totals since the start (samples by status, cache hits, child deaths, seconds in verifiers), the share of
        recent samples without a score, and under `too_many_unscored` why the run should stop, or None."""
        counts = {f"status/{status.value}": self._statuses[status] for status in Status}
        return counts | {
            "samples": self._statuses.total(),
            "cached": self._num_cached,
            "child_deaths": self._pool.num_deaths,
            "verifier_s": self._seconds,
            "unscored_fraction": self._unscored_fraction(),
            "too_many_unscored": self._too_many_unscored(),
        }

    async def close(self) -> None:
        """Ends all children; calls in flight come back as `cancelled`."""
        await asyncio.to_thread(self._pool.close)


def with_sample_facts(task: Task, trajectory: Trajectory) -> Task:
    """The task with what a verifier may want to know of the sample beside its text."""
    facts = {
        "num_tokens": trajectory.num_sampled_tokens,
        "truncated": trajectory.truncated,
        "finish_reason": trajectory.finish_reason.value,
    }
    return replace(task, metadata={**task.metadata, SAMPLE_FACTS: facts})


def _error_of(extras: Mapping[str, Any]) -> str:
    """The error of the only component, or of the first that has one."""
    if "error" in extras:
        return str(extras["error"])
    errors = (part["error"] for part in extras.values() if isinstance(part, Mapping) and "error" in part)
    return str(next(errors, "no error was recorded"))
