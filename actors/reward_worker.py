"""Scores the answers of a group: every pool judges its components, and their verdicts become one. Knows nothing of
Ray."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from actors.reward_pool import Backend, RewardPool
from rewards.combination import RunningScales, combine, combine_group, is_shut
from rewards.config import DEFAULT_POOL, RewardComponent, RewardConfig
from rewards.task import Task
from rewards.trajectory import Trajectory
from rewards.verdict import Status, Verdict
from rewards.verifiers.length import SAMPLE_FACTS
from rewards.watch import RewardWatch

UNSCORED_WINDOW = 256
"""Samples over which the unscored fraction is watched; it is judged once a quarter of the window is filled."""

NOT_ASKED = Verdict.unscored(Status.CANCELLED)
"""Of a component whose gate is closed; it counts for nothing either way."""


class TooManyUnscoredError(RuntimeError):
    """So many samples have no score that training would go on with a biased rest."""


class RewardWorker:
    """Gives each answer a verdict.

    Consumes: a task with its answers. Produces: one verdict per answer, in order. Waits for: its pools. Unblocked by:
    their verdicts, or their time limits.

    Args:
        backends: who judges behind a pool, by the pool's name, where that is not children of this process.

    Raises:
        ValueError: no components, or a backend for a pool that has none.
    """

    def __init__(
        self, config: RewardConfig, *, window: int = UNSCORED_WINDOW, backends: Mapping[str, Backend] | None = None
    ) -> None:
        if not config.components:
            raise ValueError("reward.components is empty, so no answer could be scored: name at least one verifier")
        backends = backends or {}
        if unused := sorted(backends.keys() - set(config.pool_names)):
            raise ValueError(f"backend for pool {unused[0]!r}, which judges nothing: name it in reward.components")
        self._config = config
        self._pools = {name: RewardPool(config.pool(name), backends.get(name)) for name in config.pool_names}
        self._recent_unscored: deque[bool] = deque(maxlen=window)
        self._watch = RewardWatch(config.watch)
        self._scales = RunningScales()
        self._late = _late_pools(config)
        self._statuses: Counter[Status] = Counter()
        self._num_cached = 0
        self._seconds = 0.0
        self._last_error = ""

    async def start(self) -> None:
        """Starts the children and reaches the services; without it the first calls do.

        Raises:
            NotAdmittedError: a judge pays for answers without content.
            ChildStartError: a verifier cannot be imported or is misconfigured.
            SandboxError: model-written programs would be run, and the sandbox does not keep its promises here.
        """
        try:
            await asyncio.gather(*(pool.start() for pool in self._pools.values()))
        except Exception:  # raised on: whatever else was started must not be left behind
            await self.close()
            raise

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
        facts = [sample_facts(trajectory) for trajectory in trajectories] or [None] * len(answers)
        samples = [(answer, tuple((fact or {}).items())) for answer, fact in zip(answers, facts, strict=True)]
        tasks = {sample: _with_facts(task, dict(sample[1])) for sample in samples}
        by_sample = dict(
            zip(tasks, await asyncio.gather(*(self._judge(s[0], t) for s, t in tasks.items())), strict=True)
        )
        of_group = await self._judge_group(task, answers, facts)
        parts = [
            _in_order({**by_sample[sample][0], **group_parts}, self._config.components)
            for sample, group_parts in zip(samples, of_group, strict=True)
        ]
        verdicts = combine_group(self._config, parts, self._scales, learn=bool(trajectories))
        for i, sample in enumerate(samples):
            if by_sample[sample][1]:
                verdicts[i] = replace(verdicts[i], extras={**verdicts[i].extras, "cached": True})
                self._num_cached += 1
        for answer, trajectory, verdict in zip(answers, trajectories, verdicts, strict=False):  # an evaluation has none
            self._watch.add(task.task_id, answer, trajectory.num_sampled_tokens, verdict)
        self._count(verdicts)
        return verdicts

    async def explain(self, task: Task, answer: str) -> tuple[Verdict, dict[str, Verdict]]:
        """The verdict on one answer, which is a group of its own, and the verdicts it was made from by component."""
        parts, _ = await self._judge(answer, task)
        (group_parts,) = await self._judge_group(task, [answer], [None])
        ordered = _in_order({**parts, **group_parts}, self._config.components)
        return combine(self._config, ordered), ordered

    async def _judge(self, answer: str, task: Task) -> tuple[dict[str, Verdict], bool]:
        """Verdicts of all components of scope `sample`, and whether all pools knew them."""
        pools = {name: pool for name, pool in self._pools.items() if "sample" in pool.scopes}
        judged = await asyncio.gather(*(p.judge(answer, task) for name, p in pools.items() if name not in self._late))
        parts = {name: verdict for one in judged for name, verdict in one.parts.items()}
        asked = []
        for name in self._late:
            gated = [part for part, component in self._config.components.items() if component.pool == name]
            if all(is_shut(self._config, part, parts) for part in gated):
                parts |= dict.fromkeys(gated, NOT_ASKED)
            else:
                asked.append(pools[name])
        later = await asyncio.gather(*(pool.judge(answer, task) for pool in asked))
        parts |= {name: verdict for one in later for name, verdict in one.parts.items()}
        judged = [*judged, *later]
        self._seconds += sum(verdict.seconds for verdict in parts.values())
        return parts, bool(judged) and all(one.is_cached for one in judged)

    async def _judge_group(
        self, task: Task, answers: Sequence[str], facts: Sequence[Mapping[str, Any] | None]
    ) -> list[dict[str, Verdict]]:
        """Verdicts of all components of scope `group`, per answer."""
        pools = [pool for pool in self._pools.values() if "group" in pool.scopes]
        if not pools or not answers:
            return [{} for _ in answers]
        with_facts = _with_facts(task, list(facts) if facts[0] is not None else None)
        judged = await asyncio.gather(*(pool.judge_group(answers, with_facts) for pool in pools))
        merged = [
            {name: v for parts in of_answer for name, v in parts.items()} for of_answer in zip(*judged, strict=True)
        ]
        self._seconds += sum(verdict.seconds for parts in merged for verdict in parts.values())
        return merged

    def resize(self, num_processes: int, *, pool: str = DEFAULT_POOL) -> None:
        """Changes how many answers a pool judges at a time, while it goes on.

        Raises:
            ValueError: no such pool, or num_processes < 1.
        """
        if pool not in self._pools:
            raise ValueError(f"no reward pool {pool!r}: choose from {sorted(self._pools)}")
        self._pools[pool].backend.resize(num_processes)

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
        recent samples without a score, and under `too_many_unscored` why the run should stop, or None; of each pool
        its queue as `pool/NAME/...`, and under `slowest` its slowest samples; how the paid answers change as
        `watch/...`, and under `alarms` the reasons of the alarms that ring."""
        counts = {f"status/{status.value}": self._statuses[status] for status in Status}
        pools = {f"pool/{name}/{key}": v for name, pool in self._pools.items() for key, v in pool.stats().items()}
        return counts | {
            "samples": self._statuses.total(),
            "cached": self._num_cached,
            "child_deaths": sum(getattr(pool.backend, "num_deaths", 0) for pool in self._pools.values()),
            "verifier_s": self._seconds,
            "unscored_fraction": self._unscored_fraction(),
            "too_many_unscored": self._too_many_unscored(),
            "slowest": {name: pool.slowest() for name, pool in self._pools.items()},
            "alarms": self._watch.alarms(),
            **self._watch.stats(),
            **pools,
        }

    async def close(self) -> None:
        """Ends all children; calls in flight come back as `cancelled`."""
        await asyncio.gather(*(pool.close() for pool in self._pools.values()))


def _late_pools(config: RewardConfig) -> tuple[str, ...]:
    """Pools of models that are asked only where a gate is open: a verifier has said so before they would be."""

    def waits(name: str) -> bool:
        parts = [component for component in config.components.values() if component.pool == name]
        gates = [[config.components[gate] for gate in component.gates] for component in parts]
        return (
            config.pools[name].service is not None
            and all(component.scope == "sample" for component in parts)
            and all(of_part and all(_is_verified(config, gate) for gate in of_part) for of_part in gates)
        )

    return tuple(name for name in config.pools if waits(name))


def _is_verified(config: RewardConfig, component: RewardComponent) -> bool:
    return component.scope == "sample" and config.service_of(component) is None


def sample_facts(trajectory: Trajectory) -> dict[str, Any]:
    """What a verifier may want to know of the sample beside its text."""
    return {
        "num_tokens": trajectory.num_sampled_tokens,
        "truncated": trajectory.truncated,
        "finish_reason": trajectory.finish_reason.value,
    }


def _with_facts(task: Task, facts: Any) -> Task:
    """The task with the facts of its sample, or of each sample of its group."""
    return replace(task, metadata={**task.metadata, SAMPLE_FACTS: facts}) if facts else task


def _in_order(parts: Mapping[str, Verdict], names: Mapping[str, Any]) -> dict[str, Verdict]:
    return {name: parts[name] for name in names}


def _error_of(extras: Mapping[str, Any]) -> str:
    """The error of the only component, or of the first that has one."""
    if "error" in extras:
        return str(extras["error"])
    errors = (part["error"] for part in extras.values() if isinstance(part, Mapping) and "error" in part)
    return str(next(errors, "no error was recorded"))
