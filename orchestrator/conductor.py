"""Conductor: brings the boxes of one run up in order, watches them, evaluates, and takes them down."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from actors.rollout_worker import PinnedEvaluation
from actors.run_checkpoint import RestorePoint
from orchestrator.config import RunConfig
from orchestrator.evaluation import summarise
from orchestrator.recorder import RunRecorder
from rewards.task import Task

POLL_S = 1.0
"""How often the boxes are asked for their numbers."""
NUM_SLOWEST = 16
"""Samples listed in the summary because their verdicts took longest."""


class RolloutBox(Protocol):
    """A RolloutWorker, here or in another process."""

    async def start(self, model_path: str) -> Any: ...

    async def run(self, *, sample: bool = True) -> None: ...

    async def evaluate(
        self,
        tasks: Sequence[Task],
        *,
        min_step: int,
        samples_per_task: int,
        temperature: float,
        keep_in: Path | None,
        better_than: float,
    ) -> PinnedEvaluation: ...

    async def stats(self) -> dict[str, float]: ...

    async def drain(self) -> None: ...

    async def close(self) -> None: ...


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
    """The boxes of one run. `respawn_rollout` builds a started replacement of a lost worker; None: nobody can."""

    model_path: str
    tasks: FeedBox
    replay: ReplayBox
    learner: LearnerBox
    rollouts: dict[str, RolloutBox]
    scoring: Sequence[ScoringBox]
    heldout: Sequence[Task]
    respawn_rollout: Callable[[str], Awaitable[RolloutBox]] | None = None
    lost: tuple[type[BaseException], ...] = field(default=())
    """Exceptions that mean a rollout worker's process is gone, so that a replacement may be spawned."""
    max_respawns: int = 5


class TooManyUnscoredSamplesError(RuntimeError):
    """Rewards fail so often that training would go on with a biased part of the data."""


class Conductor:
    """Runs the life of one run over its boxes. Never on the data path: groups and weights do not pass through it."""

    def __init__(self, config: RunConfig, run_dir: Path, parts: RunParts, recorder: RunRecorder) -> None:
        self._config, self._run_dir, self._parts, self._recorder = config, run_dir, parts, recorder
        self._evaluations: set[asyncio.Task[None]] = set()
        self._evaluated_steps: set[int] = set()
        self._respawns = 0
        self._alarms: set[tuple[str, str]] = set()
        self._stopping = False
        self._training = False

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
            found = {"replay": await _quietly(parts.replay.stats()), "slowest_samples": await self._slowest_samples()}
            summary = recorder.write_summary(found)
            await self._close()
        return summary

    async def stop(self) -> None:
        """Ends the run after the step in flight, with a checkpoint."""
        self._stopping = True
        await self._parts.learner.request_stop()
        await self._parts.replay.finish()

    # -- phases -------------------------------------------------------------------------------------------------

    async def _start(self, restore: RestorePoint | None) -> None:
        parts = self._parts
        if restore is None:  # also when a run died before its first checkpoint: it starts over
            await parts.replay.rollback(0, {})
        else:
            await parts.replay.rollback(restore.step, restore.batches)
            await parts.learner.restore(str(restore.folder), restore.step, restore.batches)
        await parts.learner.publish()
        await asyncio.gather(*(self._start_rollout(name, worker) for name, worker in parts.rollouts.items()))

    async def _start_rollout(self, name: str, worker: RolloutBox) -> None:
        self._recorder.worker_state(name, "starting")
        await worker.start(self._parts.model_path)
        self._recorder.worker_state(name, "ready")

    async def _train(self) -> int:
        """Learner and rollout loops side by side until the learner is through."""
        parts = self._parts
        await self._collect()
        self._recorder.training_began()
        learner = asyncio.ensure_future(parts.learner.run())
        sample = self._config.replay.live_share > 0
        rollouts = {asyncio.ensure_future(w.run(sample=sample)): name for name, w in parts.rollouts.items()}
        watching = asyncio.ensure_future(self._watch())
        self._training = True
        try:
            while not learner.done():
                await asyncio.wait({learner, watching, *rollouts}, return_when=asyncio.FIRST_COMPLETED)
                if watching.done():
                    watching.result()
                for finished in [r for r in rollouts if r.done()]:
                    name = rollouts.pop(finished)
                    if not learner.done() and await self._is_lost(name, finished):
                        rollouts[asyncio.ensure_future(self._replaced_run(name, sample=sample))] = name
            steps = learner.result()
            await self._collect()
            self._recorder.training_ended()
            return steps
        finally:
            self._training = False
            watching.cancel()
            learner.cancel()
            await _quietly(parts.replay.finish())
            await asyncio.gather(*(_quietly(worker.drain()) for worker in parts.rollouts.values()))
            await asyncio.gather(*rollouts, return_exceptions=True)
            await self._collect()

    async def _is_lost(self, name: str, finished: asyncio.Future[None]) -> bool:
        """Whether a rollout loop that ended early wants a replacement; a fault of another kind ends the run."""
        error = finished.exception()
        if error is None:
            self._recorder.worker_state(name, "drained")
            return False
        await self._note_lost(name, error)
        return True

    async def _note_lost(self, name: str, error: BaseException) -> None:
        """Raises the error when nobody can replace the worker, or too many were replaced already."""
        self._recorder.worker_state(name, "lost")
        await self._recorder.event("rollout_lost", {"worker": name, "error": repr(error)})
        parts = self._parts
        replaceable = isinstance(error, parts.lost) and parts.respawn_rollout is not None
        if not replaceable or self._respawns >= parts.max_respawns:
            raise error
        self._respawns += 1
        await parts.replay.release_worker(name)

    async def _replace(self, name: str) -> RolloutBox:
        """A started worker under the name of a lost one; it serves nothing before its first verified activation."""
        assert self._parts.respawn_rollout is not None
        replacement = await self._parts.respawn_rollout(name)
        self._parts.rollouts[name] = replacement
        await self._start_rollout(name, replacement)
        await self._recorder.event("rollout_replaced", {"worker": name})
        return replacement

    async def _replaced_run(self, name: str, *, sample: bool) -> None:
        """In the place of a lost worker's loop, so that the other loops go on while the engine starts."""
        replacement = await self._replace(name)
        await replacement.run(sample=sample)

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
        stats = await _quietly(parts.replay.stats())
        if stats:
            recorder.waits(stats.get("waits", {}))
            await recorder.report("replay", _numbers(stats))
        if values := await _quietly(parts.tasks.stats()):
            await recorder.report("tasks", values)
        for name, worker in list(parts.rollouts.items()):
            if values := await _quietly(worker.stats()):
                await recorder.report(name, values)
        for index, box in enumerate(parts.scoring):
            values = await _quietly(box.stats())
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
        stats = [await _quietly(box.stats()) or {} for box in self._parts.scoring]
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
        if not tasks or not self._parts.rollouts:
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
            name, worker = next(iter(self._parts.rollouts.items()))
            try:
                return await worker.evaluate(
                    tasks,
                    min_step=min_step,
                    samples_per_task=settings.samples_per_task,
                    temperature=settings.temperature,
                    keep_in=self._run_dir / "best" if min_step > 0 and settings.every else None,
                    better_than=best,
                )
            except self._parts.lost as error:
                await self._recorder.event("evaluation_lost", {"worker": name, "error": repr(error)})
                if not self._training:
                    await self._note_lost(name, error)
                    await self._replace(name)
                # Its training loop notices too, and replaces it.
                while self._parts.rollouts[name] is worker:  # noqa: ASYNC110
                    await asyncio.sleep(POLL_S)

    async def _close(self) -> None:
        await asyncio.gather(
            *(_quietly(worker.close()) for worker in self._parts.rollouts.values()),
            *(_quietly(box.close()) for box in self._parts.scoring),
        )
        self._recorder.close()


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}


async def _quietly(call: Awaitable[Any]) -> Any:
    """The result, or None when the box is gone: numbers for humans must not end a run."""
    try:
        return await call
    except (asyncio.CancelledError, KeyboardInterrupt):
        raise
    except Exception:  # the fault is attributed where the box's own loop is awaited
        return None
