"""Conductor: brings the boxes of one run up in order, watches them, evaluates, and takes them down."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from actors.rollout_worker import PinnedEvaluation
from actors.run_checkpoint import RestorePoint, newest_restore_point
from orchestrator.config import RunConfig
from orchestrator.evaluation import summarise
from orchestrator.fleet import RolloutBox, RolloutFleet, RolloutSource, first_names
from orchestrator.quietly import quietly
from orchestrator.recorder import RunRecorder
from orchestrator.run_files import RunFiles
from orchestrator.run_log import write_json
from orchestrator.scaling import LoadMeter, advise
from orchestrator.services import LocatedBox, ServiceWatch
from rewards.task import Task

POLL_S = 1.0
"""How often the boxes are asked for their numbers."""
ANSWER_S = 5.0
"""Longest wait for the numbers of one box; one that is away is asked again at the next poll."""
NUM_SLOWEST = 16
"""Samples listed in the summary because their verdicts took longest."""


class LearnerBox(Protocol):
    """The leader of the learner group, here or in another process."""

    async def restore(self, folder: str, step: int, batches: Mapping[int, Sequence[str]]) -> None: ...

    async def publish(self) -> Any: ...

    async def run(self) -> int: ...

    async def export(self, folder: str) -> None: ...

    async def request_stop(self) -> None: ...


class LearnerSource(Protocol):
    """Where a learner group comes from when one is lost: this process, or a cluster."""

    async def is_lost(self, error: BaseException) -> bool:
        """Whether this error of the learner's loop means that a rank is gone, so that another group may go on."""
        ...

    async def end(self) -> None:
        """Ends what is left of the lost group: none of its calls arrives after this."""

    async def start(self) -> LearnerBox:
        """A group in its place, with the model the run began with."""
        ...

    async def pids(self) -> dict[str, int]:
        """Process ids of the ranks by name; empty when they have no processes of their own."""
        ...


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
    learners: LearnerSource
    rollouts: RolloutSource
    scoring: Sequence[ScoringBox]
    heldout: Sequence[Task]
    max_respawns: int = 5
    services: Mapping[str, LocatedBox] = field(default_factory=dict)
    """Boxes in processes of their own that come back by themselves."""
    rollout_names: Sequence[str] | None = None
    """Of the rollout workers that are there already; None: as many as the configuration says."""


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
        self._num_rebuilds = 0
        self._limit: asyncio.Task[None] | None = None
        self._scoring: Mapping[str, ScoringBox] = {f"reward-{i}": box for i, box in enumerate(parts.scoring)}
        live_groups = round(config.replay.groups_per_update * config.replay.live_share)
        self._meter = LoadMeter(config.rollout.concurrent_groups, live_groups)
        self._services = ServiceWatch(parts.services, parts.rollouts.lost, recorder)
        self._fleet = RolloutFleet(
            parts.rollout_names or first_names(config.rollout.num_workers),
            parts.rollouts,
            recorder,
            parts.replay.release_worker,
            model_path=parts.model_path,
            max_respawns=parts.max_respawns,
            sample=config.replay.live_share > 0,
            keep_names=lambda names: write_json(RunFiles(run_dir).fleet, list(names)),
        )

    async def run(self, restore: RestorePoint | None = None, *, goes_on: bool = False) -> dict[str, Any]:
        """Start, evaluate, train, evaluate, export; returns the summary that was written.

        Args:
            goes_on: the boxes are in the middle of training, and only whoever watched them was lost.
        """
        recorder, parts = self._recorder, self._parts
        try:
            if goes_on:
                await self._take_over()
            else:
                await self._start(restore)
            if self._config.evaluation.at_start and restore is None and not goes_on:
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
            for task in (*self._evaluations, *([self._limit] if self._limit is not None else ())):
                task.cancel()
            found = {"replay": await quietly(parts.replay.stats()), "slowest_samples": await self._slowest_samples()}
            summary = recorder.write_summary(found)
            await self._close()
        return summary

    async def stop(self) -> None:
        """Ends the run after the step in flight, with a checkpoint."""
        self._stopping = True
        await quietly(self._parts.learner.request_stop())  # one that is just being replaced is told when it is there
        await self._parts.replay.finish()

    @property
    def num_rollout_workers(self) -> int:
        return self._fleet.size

    @property
    def rollout_workers(self) -> Sequence[RolloutBox]:
        return list(self._fleet.workers.values())

    @property
    def is_training(self) -> bool:
        return self._fleet.is_serving

    def reward_changed(self, scoring: Mapping[str, ScoringBox], services: Mapping[str, LocatedBox]) -> None:
        """Other reward workers judge now; these boxes are watched."""
        self._scoring = dict(scoring)
        self._services.watch(services)

    async def scale(self, *, rollout: int) -> None:
        """Lets rollout workers join or leave; returns before they have.

        Raises:
            FleetSizeError: the run cannot have that many now.
        """
        await self._fleet.resize(rollout)

    # -- phases -------------------------------------------------------------------------------------------------

    async def _start(self, restore: RestorePoint | None) -> None:
        await self._rolled_back(restore)
        await self._restored(restore)
        await self._fleet.start()

    async def _take_over(self) -> None:
        """Goes on watching; what the workers have counted so far was counted already."""
        await self._recorder.event("supervisor_replaced", {"step": self._recorder.step})
        every = self._config.evaluation.every
        self._evaluated_steps = {e.step // every * every for e in self._recorder.evaluations} if every else set()
        await self._fleet.attach()
        await self._collect(is_known=True)

    async def _rolled_back(self, restore: RestorePoint | None) -> None:
        """The replay cache's history goes on from a checkpoint; without one it starts over."""
        step, batches = (0, {}) if restore is None else (restore.step, restore.batches)
        await self._parts.replay.rollback(step, batches)

    async def _restored(self, restore: RestorePoint | None) -> None:
        learner = self._parts.learner
        if restore is not None:
            await learner.restore(str(restore.folder), restore.step, restore.batches)
        await learner.publish()
        if pids := await self._parts.learners.pids():
            await self._recorder.event("learner_runs", {"pids": pids})

    async def _train(self) -> int:
        """Learner and rollout loops side by side until the learner is through."""
        parts, fleet = self._parts, self._fleet
        await self._collect()
        self._recorder.training_began()
        learner = asyncio.ensure_future(self._learn())
        others = [asyncio.ensure_future(loop) for loop in (fleet.serve(), self._watch(), self._services.run())]
        try:
            await asyncio.wait({learner, *others}, return_when=asyncio.FIRST_COMPLETED)
            for ended in (task for task in others if task.done() and not learner.done()):
                ended.result()
            steps = learner.result()
            await self._collect()
            self._recorder.training_ended()
            return steps
        finally:
            for task in (learner, *others[1:]):
                task.cancel()
            await quietly(parts.replay.finish())
            await fleet.finish()
            await asyncio.gather(*others, return_exceptions=True)
            await self._collect()

    async def _learn(self) -> int:
        """The learner's loop, and that of each group in the place of one that lost a rank; the committed steps."""
        error: Exception | None = None
        limit = self._config.max_minutes
        ends_at = None if limit is None else time.monotonic() + 60.0 * limit
        while True:
            try:
                if error is not None:
                    await self._replace_learner(error)
                    if ends_at is not None:  # the clock of the new group has begun anew
                        self._limit = asyncio.ensure_future(self._stop_learner_in(ends_at - time.monotonic()))
                return await self._parts.learner.run()
            except Exception as fault:  # raised on unless it tells of a lost process, which another group replaces
                if self._num_rebuilds >= self._parts.max_respawns or not await self._parts.learners.is_lost(fault):
                    raise
                self._num_rebuilds += 1
                error = fault

    async def _stop_learner_in(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await quietly(self._parts.learner.request_stop())

    async def _replace_learner(self, error: Exception) -> None:
        """Another group goes on from the newest intact checkpoint. Rollout workers sample meanwhile, up to the bound
        that the replay cache sets; what they store stays."""
        parts, recorder, began = self._parts, self._recorder, time.monotonic()
        await recorder.event("learner_lost", {"step": recorder.step, "error": repr(error)[:500]})
        await parts.learners.end()
        restore = await asyncio.to_thread(newest_restore_point, RunFiles(self._run_dir).checkpoints)
        await self._rolled_back(restore)
        parts.learner = await parts.learners.start()
        await self._restored(restore)
        if self._stopping:
            await parts.learner.request_stop()
        details = {"step": 0 if restore is None else restore.step, "seconds": time.monotonic() - began}
        await recorder.event("learner_replaced", details)

    async def _watch(self) -> None:
        """Polls numbers, triggers evaluations, stops a run whose rewards keep failing, and follows the load."""
        scaling, decided_at = self._config.scaling, time.monotonic()
        while True:
            await asyncio.sleep(POLL_S)
            await self._collect()
            if scaling.max_rollout_workers is not None and time.monotonic() - decided_at >= scaling.period_s:
                decided_at = time.monotonic()
                await self._follow_load()
            every = self._config.evaluation.every
            due = self._recorder.step // every * every if every else 0
            if due > 0 and due not in self._evaluated_steps and due < self._config.num_steps:
                self._evaluated_steps.add(due)
                self._evaluations.add(asyncio.ensure_future(self._evaluate(due)))

    async def _follow_load(self) -> None:
        """One rollout worker more or less, where the scaling policy says so."""
        recorder, size = self._recorder, self._fleet.size
        status = recorder.status()
        load = self._meter.measure(
            wall_s=recorder.wall_s,
            lease_wait_s=recorder.lease_wait_s,
            num_workers=size,
            replay=status["workers"].get("replay", {}),
            engines={name: status["workers"].get(name, {}) for name in self._fleet.workers},
        )
        if load is None:
            return
        advice = advise(load, self._config.scaling)
        if advice.num_workers != size:
            await recorder.event("rescaled", {"before": size, "after": advice.num_workers, "reason": advice.reason})
            await self._fleet.resize(advice.num_workers)

    async def _collect(self, *, is_known: bool = False) -> None:
        """The newest numbers of every box that answers; those that are known already are not added up again."""
        parts, recorder = self._parts, self._recorder
        boxes = {"replay": parts.replay, "tasks": parts.tasks, **self._fleet.workers}
        boxes |= self._scoring
        answers = await asyncio.gather(*(quietly(asyncio.wait_for(box.stats(), ANSWER_S)) for box in boxes.values()))
        for name, values in zip(boxes, answers, strict=True):
            if not values:
                continue
            if name == "replay":
                recorder.waits(values.get("waits", {}))
            elif name.startswith("reward-"):
                self._check_unscored(values)
                await self._tell_alarms(name, values.get("alarms", {}))
            if is_known:
                recorder.counted_already(name, _numbers(values))
            else:
                await recorder.report(name, _numbers(values))

    async def _tell_alarms(self, worker: str, alarms: Mapping[str, str]) -> None:
        """An event for each alarm that began to ring."""
        ringing = {(worker, kind) for kind in alarms}
        for _, kind in sorted(ringing - self._alarms):
            await self._recorder.event("reward_alarm", {"worker": worker, "alarm": kind, "reason": alarms[kind]})
        self._alarms = {alarm for alarm in self._alarms if alarm[0] != worker} | ringing

    async def _slowest_samples(self) -> list[dict[str, Any]]:
        """The samples whose verdicts took longest, over all reward workers and pools."""
        stats = [await quietly(box.stats()) or {} for box in self._scoring.values()]
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
            *(quietly(box.close()) for box in self._scoring.values()),
        )
        self._recorder.close()


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
