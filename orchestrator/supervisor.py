"""RunSupervisor: spawns the boxes of a run on Ray, and hosts the conductor and the recorder."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, cast

import ray

from actors.assembly import RunSpec, frozen_groups
from actors.remote import ActorPort, Joined, actor_names, end_actors, this_node
from actors.replay.log import read_json
from actors.run_checkpoint import newest_restore_point
from actors.spawn import (
    Boxes,
    place_learner,
    preload_frozen,
    remove_on_all_nodes,
    spawn_replay,
    spawn_task_feed,
    spawn_weight_store,
)
from orchestrator.cluster import ClusterLearners, ClusterRollouts, ClusterScoring, unretried
from orchestrator.conductor import Conductor, FeedBox, LearnerBox, ReplayBox, RunParts, ScoringBox
from orchestrator.config import RunConfig
from orchestrator.fleet import FleetSizeError, first_names
from orchestrator.recorder import RunRecorder
from orchestrator.resources import learner_gpus_per_rank, missing_for
from orchestrator.run_files import RunFiles
from orchestrator.run_log import EVENTS_FILE, read
from orchestrator.services import LocatedBox
from orchestrator.tracking import Tracker
from rewards.task import TaskSet
from rewards.tasks import load_tasks

SUPERVISOR = "supervisor"
"""Name of the supervisor actor in its run's namespace."""

STATEFUL = ("replay", "tasks", "weights")
"""Boxes that keep the run's state, by the names of their actors."""

ALONE_S = 60.0
"""A supervisor that was not asked for its status for this long cleans up after its run itself."""


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
        self._scoring: ClusterScoring | None = None
        self._running = Joined()
        self._asked_at = time.monotonic()
        self._replaces_another = ray.get_runtime_context().was_current_actor_reconstructed
        if self._replaces_another:  # whoever asked the lost process to run may be gone as well
            threading.Thread(target=self._ask_myself_to_run, daemon=True).start()

    def _ask_myself_to_run(self) -> None:
        ray.get_actor(SUPERVISOR, self._namespace).run.remote(resume=True)

    async def run(self, *, resume: bool) -> dict[str, Any]:
        """The whole run; returns its summary. A second call joins the first."""
        return await self._running.join(lambda: self._whole_run(resume))

    async def _whole_run(self, resume: bool) -> dict[str, Any]:
        await self._recorder.event("box_runs", {"box": SUPERVISOR, "node": this_node(), "pid": os.getpid()})
        try:
            tasks = await asyncio.to_thread(load_tasks, self._config.tasks)
            parts, goes_on = await self._spawn(tasks)
            self._conductor = Conductor(self._config, self._files.root, parts, self._recorder)
            restore = newest_restore_point(self._files.checkpoints) if resume else None
            return await self._conductor.run(restore, goes_on=goes_on)
        finally:
            if time.monotonic() - self._asked_at > ALONE_S:
                await asyncio.to_thread(self._end_alone)

    def _end_alone(self) -> None:
        """Nobody who could clean up is connected any more: frees what the run holds, and at last this process."""
        end_actors(self._namespace, but=SUPERVISOR)
        remove_on_all_nodes(Path(self._spec.weights_dir))
        ray.kill(ray.get_actor(SUPERVISOR, self._namespace))

    async def status(self) -> dict[str, Any]:
        self._asked_at = time.monotonic()
        return self._recorder.status()

    async def stop(self) -> None:
        """Ends the run after the step in flight, with a checkpoint."""
        if self._conductor is not None:
            await self._conductor.stop()

    async def scale(self, *, rollout: int | None = None, reward: int | None = None) -> str:
        """Lets workers join or leave; returns a sentence for each role. Rollout workers are not waited for.

        Raises:
            FleetSizeError: the run cannot have that many now.
        """
        if self._conductor is None or not self._conductor.is_training:
            raise FleetSizeError("the run is not training now: workers join and leave only while it does; try again")
        told = [] if reward is None else [await self._scale_reward(reward)]
        return "\n".join([*told, *([] if rollout is None else [await self._scale_rollout(rollout)])])

    async def _scale_reward(self, reward: int) -> str:
        """Newcomers judge when they have started; who leaves answers first what it was asked."""
        conductor, rollouts, scoring = self._conductor, self._rollouts, self._scoring
        assert conductor is not None
        assert rollouts is not None
        assert scoring is not None
        before = len(scoring.workers)
        await scoring.grow(reward)
        leaving = scoring.shrink(reward)
        await rollouts.set_scoring(scoring.ports, conductor.rollout_workers)
        scoring.let_go(leaving)
        conductor.reward_changed(cast(dict[str, ScoringBox], scoring.workers), self._services(scoring))
        await self._recorder.event("reward_scaled", {"before": before, "after": reward})
        return f"reward workers: {before} -> {reward}"

    async def _scale_rollout(self, rollout: int) -> str:
        assert self._conductor is not None
        before = self._conductor.num_rollout_workers
        needed = missing_for(self._spec.rollout, rollout - before, ray.available_resources())
        await self._conductor.scale(rollout=rollout)
        waits = f"; the cluster lacks {needed} now, so newcomers wait until that is free" if needed else ""
        return f"rollout workers: {before} -> {rollout}{waits}"

    async def report(self, role: str, values: dict[str, float], *, step: int | None = None) -> None:
        await self._recorder.report(role, values, step=step)

    async def event(self, kind: str, details: dict[str, Any]) -> None:
        if kind == "engine_started" and self._rollouts is not None:  # without them it is read from the events later
            self._rollouts.engine_started(str(details["worker"]), details.get("pids", []))
        await self._recorder.event(kind, details)

    async def _spawn(self, tasks: TaskSet) -> tuple[RunParts, bool]:
        """All boxes; those of a supervisor whose place this one takes are taken over. Second, whether they are in the
        middle of training."""
        spec, namespace = self._spec, self._namespace
        num_gpus = learner_gpus_per_rank(self._config)
        learner = await place_learner(spec, namespace, num_gpus)
        goes_on = bool(self._replaces_another) and await learner.trains()
        if self._replaces_another and not goes_on:
            await learner.end()
            learner = await place_learner(spec, namespace, num_gpus, node=learner.node)
        judges = [name for name in actor_names(namespace) if name.startswith("reward-")]
        judges.sort(key=lambda name: int(name.removeprefix("reward-")))
        scoring = self._scoring = ClusterScoring(spec, namespace, judges)
        replay = spawn_replay(spec, namespace, learner.node)
        boxes = Boxes(
            tasks=spawn_task_feed(spec, namespace, learner.node),
            replay=replay,
            weights=spawn_weight_store(spec, namespace, learner.node),
            scoring=scoring.ports,
            report=ActorPort(ray.get_actor(SUPERVISOR, namespace), name=SUPERVISOR, namespace=namespace),
        )
        learners = ClusterLearners(learner, boxes, num_gpus)
        rollouts = self._rollouts = ClusterRollouts(spec, namespace, boxes)
        names = read_json(self._files.fleet) if self._replaces_another else None
        rollouts.spawn_ahead(names or first_names(spec.rollout.num_workers))
        if self._replaces_another:
            await self._take_over(rollouts, cast(ReplayBox, replay))
        await preload_frozen(replay, await asyncio.to_thread(lambda: list(frozen_groups(spec, tasks.train))))
        leader = cast(LearnerBox, learner.leader) if goes_on else await learners.start()
        parts = RunParts(
            model_path=spec.model_path,
            tasks=cast(FeedBox, boxes.tasks),
            replay=cast(ReplayBox, replay),
            learner=leader,
            learners=learners,
            rollouts=rollouts,
            scoring=boxes.scoring,
            heldout=tasks.heldout,
            services=self._services(scoring),
            rollout_names=names,
            max_respawns=self._config.max_losses,
        )
        return parts, goes_on

    def _services(self, scoring: ClusterScoring) -> dict[str, LocatedBox]:
        """The boxes that Ray restarts."""
        return {name: unretried(name, self._namespace) for name in (*STATEFUL, *scoring.workers)}

    async def _take_over(self, rollouts: ClusterRollouts, replay: ReplayBox) -> None:
        """What the lost supervisor knew of the rollout workers: their engines' processes, and who was to leave."""
        for line in read(self._files.root / EVENTS_FILE):
            if line.get("kind") == "engine_started":
                rollouts.engine_started(line["worker"], line["pids"])
        for name in actor_names(self._namespace):
            if name.startswith("rollout-") and not rollouts.is_ahead(name):
                await rollouts.remove(name)
                await replay.release_worker(name)
