"""RunSupervisor: spawns the boxes of a run on Ray, and hosts the conductor and the recorder."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import ray

from actors.assembly import RunSpec, frozen_groups
from actors.engines.protocol import EngineError
from actors.run_checkpoint import newest_restore_point
from actors.spawn import (
    LOST,
    ActorPort,
    Boxes,
    place_learner,
    preload_frozen,
    spawn_replay,
    spawn_reward_workers,
    spawn_rollout_worker,
    spawn_task_feed,
    spawn_weight_store,
)
from orchestrator.conductor import Conductor, FeedBox, LearnerBox, ReplayBox, RunParts
from orchestrator.config import RunConfig
from orchestrator.fleet import FleetSizeError, RolloutBox
from orchestrator.recorder import RunRecorder
from orchestrator.resources import learner_gpus_per_rank, missing_for
from orchestrator.run_files import RunFiles
from orchestrator.tracking import Tracker
from rewards.task import TaskSet
from rewards.tasks import load_tasks

SUPERVISOR = "supervisor"
"""Name of the supervisor actor in its run's namespace."""


class RunSupervisor:
    """Spawns, watches, evaluates, stops. Never on the data path.

    Consumes health and numbers; produces desired state; waits for nothing the data path waits for.
    """

    def __init__(self, config_json: str, spec: RunSpec, root: str, namespace: str, import_paths: list[str]) -> None:
        for path in import_paths:
            if path not in sys.path:
                sys.path.insert(0, path)
        importlib.invalidate_caches()
        self._config = RunConfig.model_validate_json(config_json)
        self._spec, self._files, self._namespace = spec, RunFiles(Path(root)), namespace
        tracker = Tracker(self._config.tracking, self._files.root)
        self._recorder = RunRecorder(self._files.root, tracker, num_steps=self._config.num_steps)
        self._conductor: Conductor | None = None
        self._rollouts: ClusterRollouts | None = None

    async def run(self, *, resume: bool) -> dict[str, Any]:
        """The whole run; returns its summary."""
        tasks = await asyncio.to_thread(load_tasks, self._config.tasks)
        parts = await self._spawn(tasks)
        self._conductor = Conductor(self._config, self._files.root, parts, self._recorder)
        restore = newest_restore_point(self._files.checkpoints) if resume else None
        return await self._conductor.run(restore)

    async def status(self) -> dict[str, Any]:
        return self._recorder.status()

    async def stop(self) -> None:
        """Ends the run after the step in flight, with a checkpoint."""
        if self._conductor is not None:
            await self._conductor.stop()

    async def scale(self, *, rollout: int) -> str:
        """Lets rollout workers join or leave; returns at once, with a sentence for whoever asked.

        Raises:
            FleetSizeError: the run cannot have that many now.
        """
        if self._conductor is None:
            raise FleetSizeError("the run is still starting: workers join and leave only while it trains; try again")
        before = self._conductor.num_rollout_workers
        needed = missing_for(self._spec.rollout, rollout - before, ray.available_resources())
        await self._conductor.scale(rollout=rollout)
        waits = f"; the cluster lacks {needed} now, so newcomers wait until that is free" if needed else ""
        return f"rollout workers: {before} -> {rollout}{waits}"

    async def report(self, role: str, values: dict[str, float], *, step: int | None = None) -> None:
        await self._recorder.report(role, values, step=step)

    async def event(self, kind: str, details: dict[str, Any]) -> None:
        if kind == "engine_started":
            assert self._rollouts is not None  # only its workers have engines
            self._rollouts.engine_started(str(details["worker"]), details.get("pids", []))
        await self._recorder.event(kind, details)

    async def _spawn(self, tasks: TaskSet) -> RunParts:
        spec, namespace = self._spec, self._namespace
        learner = await place_learner(spec, namespace, num_gpus_per_rank=learner_gpus_per_rank(self._config))
        replay = spawn_replay(spec, namespace, learner.node)
        boxes = Boxes(
            tasks=spawn_task_feed(spec, namespace, tasks.train, learner.node),
            replay=replay,
            weights=spawn_weight_store(spec, namespace, learner.node),
            scoring=tuple(spawn_reward_workers(spec, namespace)),
            report=ActorPort(ray.get_actor(SUPERVISOR, namespace), name=SUPERVISOR, namespace=namespace),
        )
        rollouts = self._rollouts = ClusterRollouts(spec, namespace, boxes)
        rollouts.spawn_ahead([f"rollout-{i}" for i in range(spec.rollout.num_workers)])
        await preload_frozen(replay, await asyncio.to_thread(lambda: list(frozen_groups(spec, tasks.train))))
        leader = await learner.start(boxes)
        return RunParts(
            model_path=spec.model_path,
            tasks=cast(FeedBox, boxes.tasks),
            replay=cast(ReplayBox, replay),
            learner=cast(LearnerBox, leader),
            rollouts=rollouts,
            scoring=boxes.scoring,
            heldout=tasks.heldout,
        )


class ClusterRollouts:
    """RolloutSource of a Ray cluster."""

    lost: tuple[type[BaseException], ...] = (*LOST, EngineError)

    def __init__(self, spec: RunSpec, namespace: str, boxes: Boxes) -> None:
        self._spec, self._namespace, self._boxes = spec, namespace, boxes
        self._pids: dict[str, list[int]] = {}
        self._ahead: dict[str, RolloutBox] = {}

    def spawn_ahead(self, names: Sequence[str]) -> None:
        """Lets the processes of the first workers start up while the learner loads its model."""
        for name in names:
            self._ahead[name] = self._spawn(name)

    def engine_started(self, name: str, pids: Sequence[int]) -> None:
        """Remembers the processes that a worker's engine runs in."""
        self._pids[name] = list(pids)

    async def spawn(self, name: str) -> RolloutBox:
        if name in self._ahead:
            return self._ahead.pop(name)
        await self.remove(name)
        return self._spawn(name)

    def _spawn(self, name: str) -> RolloutBox:
        return cast(RolloutBox, spawn_rollout_worker(self._spec, self._namespace, name, self._boxes))

    async def remove(self, name: str) -> None:
        """Frees the worker's name and resources, and kills engine processes it left behind on this node (an orphan
        would hold memory and cores)."""
        with suppress(ValueError):  # the actor is gone
            ray.kill(ray.get_actor(name, self._namespace))
        for pid in self._pids.pop(name, []):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while _is_named(name, self._namespace):  # noqa: ASYNC110 - Ray sets no event
            await asyncio.sleep(0.1)


def _is_named(name: str, namespace: str) -> bool:
    try:
        ray.get_actor(name, namespace)
    except ValueError:
        return False
    return True
