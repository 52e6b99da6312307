"""Where the boxes of a run on a Ray cluster come from: learner groups, rollout workers, reward workers."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import cast

import ray

from actors.assembly import RunSpec
from actors.engines.protocol import EngineError
from actors.remote import LOST, ActorPort, end_actor, is_lost
from actors.spawn import Boxes, LearnerGroup, place_learner, spawn_reward_worker, spawn_rollout_worker
from orchestrator.conductor import LearnerBox
from orchestrator.fleet import FleetSizeError, RolloutBox
from orchestrator.quietly import quietly
from orchestrator.services import LocatedBox

REWARD_LEAVES_S = 300.0
"""A reward worker that leaves may finish its calls this long."""
POLL_S = 0.5


def unretried(name: str, namespace: str) -> LocatedBox:
    """A box that Ray restarts, for one who wants to know at once when it is away."""
    return cast(LocatedBox, ActorPort(ray.get_actor(name, namespace)))


class ClusterScoring:
    """The reward workers of a run; more or fewer of them while it trains.

    Args:
        names: of those that are there already; None starts as many as the configuration says.
    """

    def __init__(self, spec: RunSpec, namespace: str, names: Sequence[str] | None = None) -> None:
        self._spec, self._namespace = spec, namespace
        names = names or [f"reward-{number}" for number in range(spec.reward.num_workers)]
        self.workers: dict[str, ActorPort] = {name: spawn_reward_worker(spec, namespace, name) for name in names}
        """Those that judge, oldest first."""
        self._leaving: set[asyncio.Task[None]] = set()

    @property
    def ports(self) -> tuple[ActorPort, ...]:
        return tuple(self.workers.values())

    async def grow(self, size: int) -> None:
        """Starts workers until there are `size`; they judge as soon as the rollout workers know of them.

        Raises:
            FleetSizeError: less than one.
        """
        if size < 1:
            raise FleetSizeError(f"reward={size}: without a reward worker no group is scored; at least 1")
        number = 1 + max(int(name.removeprefix("reward-")) for name in self.workers)
        new = [f"reward-{number + i}" for i in range(size - len(self.workers))]
        started = {name: spawn_reward_worker(self._spec, self._namespace, name) for name in new}
        await asyncio.gather(*(port.start() for port in started.values()))
        self.workers |= started

    def shrink(self, size: int) -> dict[str, ActorPort]:
        """Takes the youngest out, down to `size`; they still judge what they have been asked."""
        leaving = dict(list(self.workers.items())[size:])
        self.workers = dict(list(self.workers.items())[:size])
        return leaving

    def let_go(self, leaving: dict[str, ActorPort]) -> None:
        """Ends workers nobody asks any more, when they have answered."""
        for name, port in leaving.items():
            task = asyncio.ensure_future(self._end(name, port))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def _end(self, name: str, port: ActorPort) -> None:
        with suppress(TimeoutError, *LOST):
            async with asyncio.timeout(REWARD_LEAVES_S):
                while await port.num_asked():  # noqa: ASYNC110 - it counts in another process
                    await asyncio.sleep(POLL_S)
        await quietly(port.close())
        await end_actor(name, self._namespace)


class ClusterLearners:
    """LearnerSource of a Ray cluster. A group that takes another's place begins on the same node, where the run's
    files are."""

    def __init__(self, group: LearnerGroup, boxes: Boxes, num_gpus_per_rank: float) -> None:
        self._group: LearnerGroup | None = group
        self._spec, self._namespace, self._node = group.spec, group.namespace, group.node
        self._boxes, self._num_gpus = boxes, num_gpus_per_rank

    async def is_lost(self, error: BaseException) -> bool:
        return is_lost(error) or self._group is None or not await self._group.is_whole()

    async def end(self) -> None:
        group, self._group = self._group, None
        if group is not None:
            await group.end()

    async def pids(self) -> dict[str, int]:
        return {} if self._group is None else await self._group.pids()

    async def start(self) -> LearnerBox:
        if self._group is None:
            self._group = await place_learner(self._spec, self._namespace, self._num_gpus, node=self._node)
        return cast(LearnerBox, await self._group.start(self._boxes))


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

    def is_ahead(self, name: str) -> bool:
        return name in self._ahead

    def engine_started(self, name: str, pids: Sequence[int]) -> None:
        """Remembers the processes that a worker's engine runs in."""
        self._pids[name] = list(pids)

    async def spawn(self, name: str) -> RolloutBox:
        if name in self._ahead:
            return self._ahead.pop(name)
        await self.remove(name)
        return self._spawn(name)

    async def set_scoring(self, ports: Sequence[ActorPort], workers: Sequence[RolloutBox]) -> None:
        """From now on these judge, for the workers that are there and for those that come."""
        self._boxes = replace(self._boxes, scoring=tuple(ports))
        await asyncio.gather(*(quietly(cast(ActorPort, worker).set_scoring(self._boxes.scoring)) for worker in workers))

    def _spawn(self, name: str) -> RolloutBox:
        return cast(RolloutBox, spawn_rollout_worker(self._spec, self._namespace, name, self._boxes))

    async def remove(self, name: str) -> None:
        """Frees the worker's name and resources, and kills engine processes it left behind on this node (an orphan
        would hold memory and cores)."""
        for pid in self._pids.pop(name, []):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await end_actor(name, self._namespace)
