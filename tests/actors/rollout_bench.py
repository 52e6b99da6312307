"""A rollout worker and everything around it: simulated engine, real task feed and weight store, simple other ports."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from actors.config import EngineConfig, RolloutConfig, SamplingConfig, WeightsConfig
from actors.engines.protocol import WeightUpdate
from actors.engines.simulated import SimulatedEngine
from actors.engines.simulation import simulated_logprobs
from actors.finisher import Finisher
from actors.renderer import Renderer
from actors.rollout_worker import RolloutPorts, RolloutWorker
from actors.task_feed import TaskFeed
from actors.weights import WeightStore
from rewards.task import Task
from rewards.trajectory import PolicyVersion
from tests.actors.fakes import FakeReplay, FakeReport, FakeScoring

GROUP_SIZE = 4
PROBE = (3, 7, 8, 9, 1)


def tasks_of(count: int) -> list[Task]:
    return [Task(task_id=f"task-{i}", prompt=f"what is {i}?", reference=str(i)) for i in range(count)]


class Bench:
    """One rollout worker and everything around it."""

    def __init__(
        self,
        folder: Path,
        renderer: Renderer,
        *,
        num_tickets: int = 6,
        num_tasks: int = 32,
        rules: Sequence[Any] = (),
        answer: Any = None,
        judge: Any = lambda task, answer: float(len(answer) % 2),
        worker_id: str = "rollout-0",
        concurrent_groups: int = 2,
        max_num_seqs: int = 32,
        replay: FakeReplay | None = None,
        feed: TaskFeed | None = None,
        weights_timeout_s: float = 600.0,
        greedy_baseline: bool = False,
        **engine_options: Any,
    ) -> None:
        self.replay = replay or FakeReplay(num_tickets)
        self.feed = feed or TaskFeed(tasks_of(num_tasks), seed=0, log_dir=folder / "tasks")
        self.store = WeightStore(folder / "weights", state_dir=folder / "state", keep_versions=2)
        self.scoring, self.report, self.renderer = FakeScoring(judge), FakeReport(), renderer
        options = {"vocabulary": (6, 100), "mean_length": 6.0} | engine_options
        config = EngineConfig(kind="simulated", max_model_len=256, max_num_seqs=max_num_seqs, options=options)
        self.engine = SimulatedEngine(config, script=answer)
        self.worker = RolloutWorker(
            worker_id,
            RolloutConfig(
                group_size=GROUP_SIZE,
                concurrent_groups=concurrent_groups,
                engine=config,
                sampling=SamplingConfig(max_new_tokens=64),
                greedy_baseline=greedy_baseline,
            ),
            WeightsConfig(),
            self.engine,
            renderer,
            Finisher(rules),
            RolloutPorts(
                tasks=self.feed, replay=self.replay, scoring=self.scoring, weights=self.store, report=self.report
            ),
            seed=11,
            weights_timeout_s=weights_timeout_s,
        )

    async def publish(self, step: int) -> PolicyVersion:
        """A new version with `step` committed steps."""
        version = await self.store.issue_version(step)
        probe = simulated_logprobs(PROBE, version)
        update = WeightUpdate(
            version=version,
            step=step,
            incarnation=0,
            path="",
            digest="",
            probe_token_ids=PROBE,
            probe_logprobs=tuple(probe.tolist()),
        )
        await self.store.publish(update)
        return version

    async def start(self) -> Bench:
        await self.publish(0)
        await self.worker.start("no model")
        return self

    def assert_every_ticket_is_settled(self) -> None:
        assert self.replay.outstanding == 0
        assert set(self.replay.fates) == {ticket.ticket_id for ticket in self.replay.issued}

    async def groups_counted(self) -> int:
        return sum(row.groups for row in await self.feed.ledger())


@contextlib.asynccontextmanager
async def running(bench: Bench, **options: Any) -> AsyncIterator[asyncio.Task[None]]:
    run = asyncio.create_task(bench.worker.run(**options))
    try:
        yield run
    finally:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)


async def until(condition: Any, timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what is waited for is inside of the code under test
            await asyncio.sleep(0.001)
