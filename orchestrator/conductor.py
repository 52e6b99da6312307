"""Conductor: brings the boxes of one run up in order, watches them, evaluates, and takes them down."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from actors.rollout_worker import PinnedEvaluation
from actors.run_checkpoint import RestorePoint
from orchestrator.config import RunConfig
from orchestrator.evaluation import summarise
from orchestrator.fleet import RolloutFleet, RolloutSource
from orchestrator.quietly import quietly
from orchestrator.recorder import RunRecorder
from rewards.task import Task

POLL_S = 1.0
"""How often the boxes are asked for their numbers."""
NUM_SLOWEST = 16
"""Samples listed in the summary because their verdicts took longest."""


class LearnerBox(Protocol):
    """The leader of the learner group, here or in another process."""

    async def restore(self, folder: str, step: int, batches: Mapping[int, Sequence[str]]) -> None: ...

    async def publish(self) -> Any: ...

    async def run(self) -> int: ...

    async def export(self, folder: str) -> None: ...

    async def request_stop(self) -> None: ...


class ReplayBox(Protocol):
    """The replay cache, here or in another process."""

    async def finish(self) -> None: ...

    async def release_worker(self, worker_id: str) -> None: ...

    async def stats(self) -> dict[str, Any]: ...

    async def rollback(self, step: int, batches: Mapping[int, Sequence[str]]) -> None: ...


class FeedBox(Protocol):
    """The task feed, here or in another process."""

    async def stats(self) -> dict[str, float]: ...


class ScoringBox(Protocol):
    """One reward worker, here or in another process."""

    async def stats(self) -> dict[str, Any]: ...

    async def close(self) -> None: ...


@dataclass(kw_only=True)
class RunParts:
    """The boxes of one run, and where its rollout workers come from."""

    model_path: str
    tasks: FeedBox
    replay: ReplayBox
    learner: LearnerBox
    rollouts: RolloutSource
    scoring: Sequence[ScoringBox]
    heldout: Sequence[Task]
    max_respawns: int = 5


class TooManyUnscoredSamplesError(RuntimeError):
    """Rewards fail so often that training would go on with a biased part of the data."""


class Conductor:
    """Runs the life of one run over its boxes. Never on the data path: groups and weights do not pass through it."""

    def __init__(self, config: RunConfig, run_dir: Path, parts: RunParts, recorder: RunRecorder) -> None:
        self._config, self._run_dir, self._parts, self._recorder = config, run_dir, parts, recorder
        self._evaluations: set[asyncio.Task[None]] = set()
        self._evaluated_steps: set[int] = set()
        self._alarms: set[tuple[str, str]] = set()
        self._stopping = False
        self._fleet = RolloutFleet(
            [f"rollout-{i}" for i in range(config.rollout.num_workers)],
            parts.rollouts,
            recorder,
            parts.replay.release_worker,
            model_path=parts.model_path,
            max_respawns=parts.max_respawns,
            sample=config.replay.live_share > 0,
        )

    async def run(self, restore: RestorePoint | None = None) -> dict[str, Any]:
        """Start, evaluate, train, evaluate, export; returns the summary that was written."""
        recorder, parts = self._recorder, self._parts
        try:
            await self._start(restore)
            if self._config.evaluation.at_start and restore is None:
                await self._evaluate(0)
            steps = await self._train()
            recorder.phase("finishing")
            await asyncio.gather(*self._evaluations)
            if self._config.evaluation.at_end and not self._stopping:
                await self._evaluate(steps)
            await parts.learner.export(str(self._run_dir / "model"))
            recorder.phase("stopped" if self._stopping else "done")
        except BaseException:
            recorder.phase("failed")
            raise
        finally:
            for task in self._evaluations:
                task.cancel()
            found = {"replay": await quietly(parts.replay.stats()), "slowest_samples": await self._slowest_samples()}
            summary = recorder.write_summary(found)
            await self._close()
        return summary

    async def stop(self) -> None:
        """Ends the run after the step in flight, with a checkpoint."""
        self._stopping = True
        await self._parts.learner.request_stop()
        await self._parts.replay.finish()

    @property
    def num_rollout_workers(self) -> int:
        return self._fleet.size

    async def scale(self, *, rollout: int) -> None:
        """Lets rollout workers join or leave; returns before they have.

        Raises:
            FleetSizeError: the run cannot have that many now.
        """
        await self._fleet.resize(rollout)

    # -- phases -------------------------------------------------------------------------------------------------

    async def _start(self, restore: RestorePoint | None) -> None:
        parts = self._parts
        if restore is None:  # also when a run died before its first checkpoint: it starts over
            await parts.replay.rollback(0, {})
        else:
            await parts.replay.rollback(restore.step, restore.batches)
            await parts.learner.restore(str(restore.folder), restore.step, restore.batches)
        await parts.learner.publish()
        await self._fleet.start()

    async def _train(self) -> int:
        """Learner and rollout loops side by side until the learner is through."""
        parts, fleet = self._parts, self._fleet
        await self._collect()
        self._recorder.training_began()
        learner = asyncio.ensure_future(parts.learner.run())
        others = [asyncio.ensure_future(fleet.serve()), asyncio.ensure_future(self._watch())]
        try:
            await asyncio.wait({learner, *others}, return_when=asyncio.FIRST_COMPLETED)
            for ended in (task for task in others if task.done() and not learner.done()):
                ended.result()
            steps = learner.result()
            await self._collect()
            self._recorder.training_ended()
            return steps
        finally:
            for task in (learner, others[1]):
                task.cancel()
            await quietly(parts.replay.finish())
            await fleet.finish()
            await asyncio.gather(*others, return_exceptions=True)
            await self._collect()

    async def _watch(self) -> None:
        """Polls numbers, triggers evaluations, and stops a run whose rewards keep failing."""
        while True:
            await asyncio.sleep(POLL_S)
            await self._collect()
            every = self._config.evaluation.every
            due = self._recorder.step // every * every if every else 0
            if due > 0 and due not in self._evaluated_steps and due < self._config.num_steps:
                self._evaluated_steps.add(due)
                self._evaluations.add(asyncio.ensure_future(self._evaluate(due)))

    async def _collect(self) -> None:
        parts, recorder = self._parts, self._recorder
        stats = await quietly(parts.replay.stats())
        if stats:
            recorder.waits(stats.get("waits", {}))
            await recorder.report("replay", _numbers(stats))
        if values := await quietly(parts.tasks.stats()):
            await recorder.report("tasks", values)
        for name, worker in list(self._fleet.workers.items()):
            if values := await quietly(worker.stats()):
                await recorder.report(name, values)
        for index, box in enumerate(parts.scoring):
            values = await quietly(box.stats())
            if values:
                self._check_unscored(values)
                await self._tell_alarms(f"reward-{index}", values.get("alarms", {}))
                await recorder.report(f"reward-{index}", _numbers(values))

    async def _tell_alarms(self, worker: str, alarms: Mapping[str, str]) -> None:
        """An event for each alarm that began to ring."""
        ringing = {(worker, kind) for kind in alarms}
        for _, kind in sorted(ringing - self._alarms):
            await self._recorder.event("reward_alarm", {"worker": worker, "alarm": kind, "reason": alarms[kind]})
        self._alarms = {alarm for alarm in self._alarms if alarm[0] != worker} | ringing

    async def _slowest_samples(self) -> list[dict[str, Any]]:
        """The samples whose verdicts took longest, over all reward workers and pools."""
        stats = [await quietly(box.stats()) or {} for box in self._parts.scoring]
        slowest = [
            s | {"pool": pool} for one in stats for pool, samples in one.get("slowest", {}).items() for s in samples
        ]
        return sorted(slowest, key=lambda sample: -sample["seconds"])[:NUM_SLOWEST]

    def _check_unscored(self, values: Mapping[str, Any]) -> None:
        if reason := values.get("too_many_unscored"):
            raise TooManyUnscoredSamplesError(str(reason))

    # -- evaluation ---------------------------------------------------------------------------------------------

    async def _evaluate(self, min_step: int) -> None:
        settings = self._config.evaluation
        tasks = self._parts.heldout
        if 0 < min_step < self._config.num_steps and settings.num_tasks is not None:
            tasks = tasks[: settings.num_tasks]
        if not tasks:
            return
        if min_step == 0:
            self._recorder.phase("evaluating")
        pinned = await self._answered(tasks, min_step)
        evaluation = summarise(pinned, settings.split_by)
        self._recorder.evaluated(evaluation)
        if pinned.kept:
            await self._recorder.event("best_kept", evaluation.as_dict())

    async def _answered(self, tasks: Sequence[Task], min_step: int) -> PinnedEvaluation:
        """The held-out answers of one version, from a worker that lives to the end of them."""
        settings = self._config.evaluation
        best = max((e.splits["all"].accuracy for e in self._recorder.evaluations), default=-1.0)
        while True:
            name, worker = next(iter(self._fleet.workers.items()))
            try:
                return await worker.evaluate(
                    tasks,
                    min_step=min_step,
                    samples_per_task=settings.samples_per_task,
                    temperature=settings.temperature,
                    keep_in=self._run_dir / "best" if min_step > 0 and settings.every else None,
                    better_than=best,
                )
            except self._parts.rollouts.lost as error:
                await self._recorder.event("evaluation_lost", {"worker": name, "error": repr(error)})
                await self._fleet.replaced(name, worker, error)

    async def _close(self) -> None:
        await asyncio.gather(
            self._fleet.close(),
            *(quietly(box.close()) for box in self._parts.scoring),
        )
        self._recorder.close()


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
