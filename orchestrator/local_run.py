"""LocalRun: the loops of the cluster gathered in one process, for fast tests and small experiments."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.assembly import (
    RunSpec,
    frozen_groups,
    make_learner_plan,
    make_learner_rank,
    make_replay,
    make_reward_worker,
    make_rollout_worker,
    make_task_feed,
    make_weight_store,
)
from actors.engines.protocol import EngineError
from actors.learner_worker import LearnerPorts, LearnerRank, LearnerWorker
from actors.model_store import resolve_model
from actors.pools import ScorePool
from actors.rollout_worker import RolloutPorts, RolloutWorker
from actors.run_checkpoint import RunCheckpointer, newest_restore_point
from actors.transports.object_store import remove_versions
from orchestrator.conductor import Conductor, RunParts
from orchestrator.config import RunConfig
from orchestrator.recorder import RunRecorder
from orchestrator.run_files import RunFiles, make_spec, open_run
from orchestrator.tracking import Tracker
from rewards.task import TaskSet
from rewards.tasks import load_tasks


async def run_local(
    config: RunConfig, root: Path, *, resume: bool = False, tasks: TaskSet | None = None
) -> dict[str, Any]:
    """Runs a whole configuration in this process; returns the summary.

    Args:
        root: folder of the run.
        tasks: instead of what `config.tasks` names.
    """
    files, incarnation = open_run(config, root, resume=resume)
    spec = make_spec(config, files, resolve_model(config.model), incarnation)
    recorder = RunRecorder(files.root, Tracker(config.tracking, files.root), num_steps=config.num_steps)
    tasks = tasks or load_tasks(config.tasks)
    parts = None
    try:
        parts = await build_local_parts(config, spec, files, tasks, recorder)
        restore = newest_restore_point(files.checkpoints) if resume else None
        return await Conductor(config, files.root, parts, recorder).run(restore)
    finally:
        if parts is not None:
            await parts.learners.end()  # a version that is still being written would lie there again
        remove_versions(Path(spec.weights_dir))


async def build_local_parts(
    config: RunConfig, spec: RunSpec, files: RunFiles, tasks: TaskSet, recorder: RunRecorder
) -> RunParts:
    """Every box of the run as a plain object of this process."""
    replay, feed, store = make_replay(spec), make_task_feed(spec, tasks.train), make_weight_store(spec)
    if groups := list(frozen_groups(spec, tasks.train)):
        await replay.preload(groups)
    scoring = [make_reward_worker(spec) for _ in range(spec.reward.num_workers)]
    checkpointer = RunCheckpointer(
        files.checkpoints, {"replay": replay, "tasks": feed}, keep=spec.checkpoint_keep, config_json=spec.config_json
    )
    ports = LearnerPorts(ranks=(), replay=replay, publish=store, checkpoint=checkpointer, report=recorder)
    learners = LocalLearners(spec, ports)
    pool = ScorePool(scoring, hedge_after_s=spec.reward.hedge_worker_after_s)
    rollout_ports = RolloutPorts(tasks=feed, replay=replay, scoring=pool, weights=store, report=recorder)
    return RunParts(
        model_path=spec.model_path,
        tasks=feed,
        replay=replay,
        learner=await learners.start(),
        learners=learners,
        rollouts=LocalRollouts(spec, rollout_ports),
        scoring=scoring,
        heldout=tasks.heldout,
        max_respawns=config.max_losses,
    )


class LocalLearners:
    """LearnerSource of this process: one rank, lost when its process would have died."""

    lost: tuple[type[BaseException], ...] = ()
    """What stands for a death here; tests that inject one name it."""

    def __init__(self, spec: RunSpec, ports: LearnerPorts) -> None:
        self._spec, self._ports = spec, ports
        self._rank: LearnerRank | None = None

    async def is_lost(self, error: BaseException) -> bool:
        return isinstance(error, self.lost)

    async def end(self) -> None:
        if self._rank is not None:
            await self._rank.close()

    async def pids(self) -> dict[str, int]:
        return {}

    async def start(self) -> LearnerWorker:
        self._rank = make_learner_rank(self._spec)
        return LearnerWorker(make_learner_plan(self._spec), replace(self._ports, ranks=(self._rank,)))


class LocalRollouts:
    """RolloutSource of this process."""

    lost: tuple[type[BaseException], ...] = (EngineError,)

    def __init__(self, spec: RunSpec, ports: RolloutPorts) -> None:
        self._spec, self._ports = spec, ports

    async def spawn(self, name: str) -> RolloutWorker:
        return make_rollout_worker(self._spec, name, self._ports)

    async def remove(self, name: str) -> None:
        """Nothing: a closed worker of this process holds nothing."""
