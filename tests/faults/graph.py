"""The whole graph in one process, where each box can be killed before or after any call that it serves.

Boxes, loops, conductor and fleet are the real ones; an engine is simulated, and a rank computes something small. A
killed box is left as it was at that moment: what waits in it waits for ever, and another one is built over its folder,
as Ray does with a process. Callers ask again, as `actors.remote.ActorPort` does. A killed worker or learner makes no
further call.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.config import EngineConfig, ReplayConfig, RolloutConfig, SamplingConfig, WeightsConfig
from actors.engines.protocol import EngineError, WeightUpdate
from actors.engines.simulated import SimulatedEngine
from actors.finisher import Finisher
from actors.learner_worker import LearnerPlan, LearnerPorts, LearnerWorker
from actors.renderer import Renderer
from actors.replay.cache import ReplayCache
from actors.rollout_worker import RolloutPorts, RolloutWorker
from actors.run_checkpoint import RunCheckpointer, newest_restore_point
from actors.task_feed import TaskFeed
from actors.weights import WeightStore, write_version
from learner.config import ClippedSurrogate, Term
from learner.trainer import StepReport
from orchestrator.audit import audit_run
from orchestrator.conductor import Conductor, RunParts
from orchestrator.config import CheckpointConfig, EvaluationConfig, RunConfig, TrackingConfig
from orchestrator.recorder import RunRecorder
from orchestrator.run_files import RunFiles
from orchestrator.tracking import Tracker
from rewards.task import Task
from rewards.trajectory import Group, PolicyVersion, Trajectory
from rewards.verdict import Verdict

BOXES = ("replay", "tasks", "weights")
PROBE = (3, 7, 8, 9, 1)


class KilledError(Exception):
    """What is noticed of a process that is gone."""


@dataclass(frozen=True, slots=True)
class Kill:
    """At the `point`-th moment of the run, `victim` dies: a box, a worker, the learner, or all of them at once."""

    point: int
    victim: str


class Life:
    """One process: alive until it is killed."""

    def __init__(self) -> None:
        self.died = asyncio.Event()
        self.calls: set[asyncio.Future[Any]] = set()

    @property
    def is_dead(self) -> bool:
        return self.died.is_set()

    def kill(self) -> None:
        self.died.set()
        for call in self.calls:
            call.cancel()

    async def during(self, work: Awaitable[Any]) -> Any:
        """The result of the work, or KilledError at the moment of death."""
        if self.is_dead:
            asyncio.ensure_future(work).cancel()
            raise KilledError
        task, death = asyncio.ensure_future(work), asyncio.ensure_future(self.died.wait())
        self.calls.add(task)
        try:
            await asyncio.wait({task, death}, return_when=asyncio.FIRST_COMPLETED)
            if self.is_dead:
                raise KilledError
            return task.result()
        finally:
            self.calls.discard(task)
            task.cancel()
            death.cancel()


class Process:
    """A worker or the learner, as whoever watches over it sees it."""

    def __init__(self, life: Life, inside: Any) -> None:
        self._life, self._inside = life, inside

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        return lambda *args, **kwargs: self._life.during(getattr(self._inside, method)(*args, **kwargs))


class Port:
    """A box as one of its callers sees it: found by name, asked again when it died over a call."""

    def __init__(self, graph: Graph, name: str, caller: Life) -> None:
        self._graph, self._name, self._caller = graph, name, caller

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            while True:
                life, box = self._graph.boxes[self._name]
                self._graph.passes(f"{self._name}.{method}")
                self._end_with_the_caller()
                if life.is_dead:
                    continue
                work = asyncio.ensure_future(_served(life, getattr(box, method), *args, **kwargs))
                death = asyncio.ensure_future(life.died.wait())
                try:
                    await asyncio.wait({work, death}, return_when=asyncio.FIRST_COMPLETED)
                except asyncio.CancelledError:
                    if not self._caller.is_dead and not life.is_dead:
                        work.cancel()
                    raise
                finally:
                    death.cancel()
                if life.is_dead:
                    self._graph.left_behind.append(work)
                    continue
                self._end_with_the_caller()
                self._graph.passes(f"{self._name}.{method} done")
                self._end_with_the_caller()
                if not life.is_dead and not self._graph.loses_reply():
                    return work.result()

        return call

    def _end_with_the_caller(self) -> None:
        if self._caller.is_dead:
            raise asyncio.CancelledError


async def _served(life: Life, method: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
    """A call that reached a box; one that it did not begin before its death it never does."""
    if life.is_dead:
        await asyncio.Event().wait()
    return await method(*args, **kwargs)


class Scoring:
    """Verdicts by the answer alone."""

    async def score(self, task: Task, answers: Sequence[str], trajectories: Sequence[Trajectory]) -> list[Verdict]:
        return [Verdict.scored(float(len(answer) % 2)) for answer in answers]


class Rank:
    """A learner of four fp32 weights, whose loss depends on every token of its batch, in order."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.weights = np.linspace(0.1, 0.4, 4, dtype=np.float32)

    async def step(self, groups: Sequence[Group], step: int) -> StepReport:
        loss = np.float32(0)
        for trajectory in (t for group in groups for t in group.trajectories):
            features = np.float32(trajectory.token_ids[-4:]) / np.float32(256)
            error = np.dot(self.weights[: len(features)], features) - np.float32(trajectory.score or 0)
            loss += error * error
            self.weights[: len(features)] -= np.float32(0.01) * error * features
        self._graph.losses[step] = float(loss)
        return StepReport(
            step=step, loss=float(loss), terms={}, grad_norm=1.0, learning_rate=0.01, skipped=False, skip_reason=None
        )

    async def stage_weights(self, dtype: str, probe_token_ids: tuple[int, ...]) -> None:
        self._staged = torch.tensor(self.weights)

    async def write_version(self, version: PolicyVersion, step: int) -> WeightUpdate:
        return write_version(
            [("weights", self._staged)],
            self._graph.folder / "weights",
            version=version,
            step=step,
            incarnation=self._graph.incarnation,
            dtype="float32",
            probe_token_ids=PROBE,
            probe_logprobs=[float("nan"), *(-1.0 for _ in PROBE[1:])],
        )

    async def begin_save(self, folder: str) -> None:
        np.save(Path(folder) / "weights.npy", self.weights)

    async def finish_save(self) -> None: ...

    async def load(self, folder: str) -> None:
        self.weights = np.load(Path(folder) / "weights.npy")

    async def export(self, folder: str) -> None:
        await asyncio.to_thread(Path(folder).mkdir, exist_ok=True)
        await self.begin_save(folder)


@dataclass
class Graph:
    """One run that is killed as it is told.

    Attributes:
        kills: in the order of their points; those that fired are in `fired`, with the call they fell on.
        engine_faults: options of a worker's engine, for its first life, its second, ...
        lost_replies: share of the calls that were served and whose caller does not learn of it, and asks again.
        points: moments passed: before and after each call of a box.
    """

    folder: Path
    renderer: Renderer
    kills: Sequence[Kill] = ()
    num_steps: int = 5
    num_workers: int = 2
    max_age: int = 1
    concurrent_groups: int = 2
    checkpoint_every: int = 2
    engine_faults: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    lost_replies: float = 0.0
    points: int = 0
    num_lost_replies: int = 0
    incarnation: int = 0
    fired: list[tuple[Kill, str]] = field(default_factory=list)
    losses: dict[int, float] = field(default_factory=dict)
    boxes: dict[str, tuple[Life, Any]] = field(default_factory=dict)
    lives: dict[str, Life] = field(default_factory=dict)
    left_behind: list[asyncio.Future[Any]] = field(default_factory=list)
    _draw: random.Random = field(default_factory=lambda: random.Random(0))

    async def run(self) -> dict[str, Any]:
        """To the end, whatever dies on the way; returns the summary."""
        files = RunFiles(self.folder)
        files.state.mkdir(parents=True, exist_ok=True)
        config = self._config()
        files.config.write_text(config.model_dump_json())
        while True:
            self._run_life = Life()
            for name in BOXES:
                self._build(name)
            recorder = RunRecorder(self.folder, Tracker(config.tracking, self.folder), num_steps=self.num_steps)
            conductor = Conductor(config, self.folder, await self._parts(recorder), recorder)
            restore = newest_restore_point(files.checkpoints) if self.incarnation else None
            try:
                return await self._run_life.during(conductor.run(restore))
            except KilledError:
                self.incarnation += 1
            finally:
                for work in self.left_behind:
                    work.cancel()

    def passes(self, call: str) -> None:
        """One moment; whoever is to die now does."""
        self.points += 1
        while len(self.fired) < len(self.kills) and self.kills[len(self.fired)].point <= self.points:
            kill = self.kills[len(self.fired)]
            self.fired.append((kill, call))
            self._kill(kill.victim)

    def loses_reply(self) -> bool:
        lost = self._draw.random() < self.lost_replies
        self.num_lost_replies += lost
        return lost

    def _kill(self, victim: str) -> None:
        if victim == "all":
            for life in (*self.lives.values(), *(life for life, _ in self.boxes.values()), self._run_life):
                life.kill()
        elif victim in self.boxes:
            self.boxes[victim][0].kill()
            self._build(victim)
        elif victim in self.lives:
            self.lives[victim].kill()

    def _build(self, name: str) -> None:
        state = self.folder / "state"
        match name:
            case "replay":
                box = ReplayCache(
                    self._config().replay, directory=state / "replay", seed=0, incarnation=self.incarnation
                )
            case "tasks":
                tasks = [Task(task_id=f"task-{i}", prompt=f"what is {i}?", reference=str(i)) for i in range(24)]
                box = TaskFeed(tasks, seed=0, log_dir=state / "tasks")
            case _:
                box = WeightStore(self.folder / "weights", state_dir=state / "weights", keep_versions=2)
        self.boxes[name] = Life(), box

    def _config(self) -> RunConfig:
        engine = EngineConfig(kind="simulated", max_model_len=256, options={"vocabulary": (6, 100), "mean_length": 6.0})
        return RunConfig(
            terms=(Term(loss=ClippedSurrogate()),),
            rollout=RolloutConfig(
                num_workers=self.num_workers,
                group_size=2,
                concurrent_groups=self.concurrent_groups,
                engine=engine,
                sampling=SamplingConfig(max_new_tokens=32),
            ),
            replay=ReplayConfig(groups_per_update=2, max_age=self.max_age, wait_timeout_s=20.0),
            checkpoint=CheckpointConfig(every=self.checkpoint_every),
            evaluation=EvaluationConfig(at_start=False, at_end=False),
            tracking=TrackingConfig(sinks=()),
            num_steps=self.num_steps,
        )

    async def _parts(self, recorder: RunRecorder) -> RunParts:
        learners = Learners(self, recorder)
        return RunParts(
            model_path="no model",
            tasks=Port(self, "tasks", self._run_life),
            replay=Port(self, "replay", self._run_life),
            learner=await learners.start(),
            learners=learners,
            rollouts=Rollouts(self, recorder),
            scoring=(),
            heldout=(),
            max_respawns=100,
        )


class Rollouts:
    """RolloutSource of the graph."""

    lost: tuple[type[BaseException], ...] = (KilledError, EngineError)

    def __init__(self, graph: Graph, recorder: RunRecorder) -> None:
        self._graph, self._recorder = graph, recorder
        self._num_lives: Counter[str] = Counter()

    async def spawn(self, name: str) -> Any:
        graph, config = self._graph, self._graph._config()
        life = graph.lives[name] = Life()
        ports = RolloutPorts(
            tasks=Port(graph, "tasks", life),
            replay=Port(graph, "replay", life),
            scoring=Scoring(),
            weights=Port(graph, "weights", life),
            report=self._recorder,
        )
        worker = RolloutWorker(
            name,
            config.rollout,
            WeightsConfig(),
            SimulatedEngine(self._engine(name, config.rollout.engine)),
            graph.renderer,
            Finisher(()),
            ports,
            seed=config.seed,
        )
        return Process(life, worker)

    def _engine(self, name: str, config: EngineConfig) -> EngineConfig:
        self._num_lives[name] += 1
        faults = self._graph.engine_faults.get(name, ())
        changes = faults[self._num_lives[name] - 1] if self._num_lives[name] <= len(faults) else {}
        return config.model_copy(update={"options": {**config.options, **changes}})

    async def remove(self, name: str) -> None: ...


class Learners:
    """LearnerSource of the graph."""

    def __init__(self, graph: Graph, recorder: RunRecorder) -> None:
        self._graph, self._recorder = graph, recorder

    async def is_lost(self, error: BaseException) -> bool:
        return isinstance(error, KilledError)

    async def end(self) -> None:
        self._graph.lives["learner"].kill()

    async def pids(self) -> dict[str, int]:
        return {}

    async def start(self) -> Any:
        graph, life = self._graph, Life()
        graph.lives["learner"] = life
        boxes = {name: Port(graph, name, life) for name in BOXES}
        snapshots = {name: boxes[name] for name in ("replay", "tasks")}
        ports = LearnerPorts(
            ranks=(Rank(graph),),
            replay=boxes["replay"],
            publish=boxes["weights"],
            checkpoint=RunCheckpointer(RunFiles(graph.folder).checkpoints, snapshots, keep=2, config_json="{}"),
            report=self._recorder,
        )
        plan = LearnerPlan(
            num_steps=graph.num_steps,
            weights=WeightsConfig(),
            weights_dtype="float32",
            probe_token_ids=PROBE,
            max_age=graph.max_age,
            max_skipped_steps=3,
            checkpoint_every=graph.checkpoint_every,
        )
        return Process(life, LearnerWorker(plan, ports))


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def trained_groups(folder: Path) -> list[list[str]]:
    """Group ids of each step, as the newest checkpoint's manifest says."""
    newest = max((folder / "checkpoints").glob("step-*"))
    batches = json.loads((newest / "batches.json").read_text())
    return [batches[str(step)] for step in range(len(batches))]


async def checked(graph: Graph) -> dict[str, Any]:
    """Runs it to the end and checks the books; the summary."""
    told = f"kills {graph.kills}"
    summary = await graph.run()
    report = audit_run(graph.folder)
    assert report.ok, "\n".join([told, *(f"{kill} at {call}" for kill, call in graph.fired), *report.lines()])
    assert (summary["step"], summary["age_violations"]) == (graph.num_steps, 0), told
    every = [group_id for group_ids in trained_groups(graph.folder) for group_id in group_ids]
    assert len(every) == len(set(every)) == 2 * graph.num_steps, told
    return summary
