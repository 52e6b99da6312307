"""A leader of the learner group without a learner: ranks and boxes that write down what is asked of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.config import WeightsConfig
from actors.engines.protocol import WeightUpdate
from actors.learner_worker import LearnerPlan, LearnerPorts, LearnerWorker
from actors.ports import BatchLease
from learner.trainer import StepReport
from rewards.trajectory import Group, PolicyVersion
from tests.builders import make_group

PROBE = (3, 1, 4, 1, 5, 9, 2, 6)


def report(step: int, *, skipped: bool = False, **values: Any) -> StepReport:
    reason = "loss is nan" if skipped else None
    return StepReport(
        step=step, loss=0.5, terms={}, grad_norm=1.0, learning_rate=1e-3, skipped=skipped, skip_reason=reason, **values
    )


class FakeRank:
    """A rank that trains nothing; `skips` says at which steps it reports a bad gradient."""

    def __init__(self, log: list[Any], index: int, skips: Callable[[int], bool] = lambda step: False) -> None:
        self._log, self._index, self._skips = log, index, skips
        self.before_step: Callable[[int], Any] = lambda step: None
        self.before_write: Callable[[int], Awaitable[Any]] = lambda step: asyncio.sleep(0)
        self.before_saved: Callable[[], Awaitable[Any]] = lambda: asyncio.sleep(0)

    async def step(self, groups: Sequence[Group], step: int) -> StepReport:
        self.before_step(step)
        self._log.append(("train", self._index, step, tuple(g.group_id for g in groups)))
        await asyncio.sleep(0)
        return report(step, skipped=self._skips(step))

    async def stage_weights(self, dtype: str, probe_token_ids: tuple[int, ...]) -> None:
        self._log.append(("stage", self._index, dtype, probe_token_ids))

    async def write_version(self, version: PolicyVersion, step: int) -> WeightUpdate:
        self._log.append(("write", self._index, version, step))
        await self.before_write(step)
        return WeightUpdate(version=version, step=step, incarnation=0, path="", digest=str(version))

    async def begin_save(self, folder: str) -> None:
        self._log.append(("save", self._index, folder))

    async def finish_save(self) -> None:
        self._log.append(("saved", self._index))
        await self.before_saved()

    async def load(self, folder: str) -> None:
        self._log.append(("load", self._index, folder))

    async def export(self, folder: str) -> None:
        self._log.append(("export", self._index, folder))


@dataclass
class FakePorts:
    """Every box a leader talks to; all calls go into one log.

    Attributes:
        groups: the batch of a step.
        waits: at this step no batch comes, or the exception.
    """

    log: list[Any] = field(default_factory=list)
    groups: Callable[[int], Sequence[Group]] = lambda step: [make_group(group_id=f"g{step}")]
    waits: Mapping[int, Exception | None] = field(default_factory=dict)
    ages: Mapping[str, int] = field(default_factory=dict)
    versions: int = 0
    measured: dict[int, Any] = field(default_factory=dict)
    """What was told of the groups at each commit."""
    reports: list[dict[str, float]] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    leasing: asyncio.Event = field(default_factory=asyncio.Event)
    ranks: tuple[FakeRank, ...] = ()

    async def lease(self, step: int) -> BatchLease:
        self.log.append(("lease", step))
        if step in self.waits:
            self.leasing.set()
            if error := self.waits[step]:
                raise error
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.log.append(("lease given up", step))
                raise
        return BatchLease(
            lease_id=f"lease-{step}", step=step, epoch=0, groups=tuple(self.groups(step)), ages=self.ages, waited_s=0.25
        )

    async def commit(
        self,
        step: int,
        lease_id: str,
        *,
        dropped: Mapping[str, str] | None = None,
        measured: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        self.measured[step] = dict(measured or {})
        self.log.append(("commit", step, lease_id, dict(dropped or {})))

    async def announce_version(self, version: PolicyVersion, step: int) -> None:
        self.log.append(("announce", version, step))

    async def seal(self, step: int) -> None:
        self.log.append(("seal", step))

    async def issue_version(self, step: int) -> PolicyVersion:
        self.log.append(("issue", self.versions, step))
        self.versions += 1
        return PolicyVersion(self.versions - 1)

    async def publish(self, update: WeightUpdate) -> None:
        self.log.append(("publish", update.version, update.step))

    async def begin(self, step: int) -> str:
        self.log.append(("begin", step))
        return f"folder-{step}"

    async def complete(self, step: int, batches: Mapping[int, Sequence[str]], state: Mapping[str, Any]) -> None:
        self.log.append(("complete", step, {k: list(v) for k, v in batches.items()}, dict(state)))

    async def report(self, role: str, values: Mapping[str, float], *, step: int | None = None) -> None:
        assert role == "learner"
        self.reports.append({**values, "at": float(step or 0)})

    async def event(self, kind: str, details: Mapping[str, Any]) -> None:
        self.events.append((kind, dict(details)))

    def names(self) -> list[str]:
        return [entry[0] for entry in self.log]

    def entries(self, name: str) -> list[Any]:
        return [entry for entry in self.log if entry[0] == name]


def make_plan(num_steps: int, *, publish_every: int = 1, **values: Any) -> LearnerPlan:
    fixed = {"weights_dtype": "float32", "probe_token_ids": PROBE, "max_age": 2, "max_skipped_steps": 3}
    return LearnerPlan(num_steps=num_steps, weights=WeightsConfig(publish_every=publish_every), **(fixed | values))


def make_worker(plan: LearnerPlan, ports: FakePorts, *, num_ranks: int = 1, skips=lambda step: False) -> LearnerWorker:
    ports.ranks = tuple(FakeRank(ports.log, index, skips) for index in range(num_ranks))
    return LearnerWorker(plan, LearnerPorts(ports.ranks, replay=ports, publish=ports, checkpoint=ports, report=ports))
