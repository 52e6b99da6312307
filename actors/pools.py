"""Many workers behind one port: least-loaded routing, and a fault that costs one try instead of the run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from actors.ports import ScorePort
from rewards.task import Task
from rewards.trajectory import Trajectory
from rewards.verdict import Status, Verdict


class _Member:
    """A worker of the pool and the calls it is busy with."""

    def __init__(self, port: ScorePort) -> None:
        self.port = port
        self.pending = 0

    def ask(
        self, task: Task, answers: Sequence[str], trajectories: Sequence[Trajectory]
    ) -> asyncio.Task[list[Verdict]]:
        """A call that runs at once and counts as pending until it is over."""
        self.pending += 1
        call = asyncio.ensure_future(self.port.score(task, answers, trajectories))
        call.add_done_callback(self._over)
        return call

    def _over(self, _: object) -> None:
        self.pending -= 1


class ScorePool:
    """Reward workers as one ScorePort: the least busy one judges; a lost one is routed around.

    Args:
        workers: the ports of the pool's members.
        lost: exception types that mean the worker, not the answer, failed.
        num_retries: further members to ask before the samples are declared unscored.
        hedge_after_s: a call that takes longer is also made to another member, and the first reply counts; None: never.
    """

    def __init__(
        self,
        workers: Sequence[ScorePort],
        *,
        lost: tuple[type[BaseException], ...] = (),
        num_retries: int = 3,
        hedge_after_s: float | None = None,
    ) -> None:
        if not workers:
            raise ValueError("a ScorePool needs at least one worker")
        self._members = [_Member(worker) for worker in workers]
        self._lost = lost
        self._num_retries = num_retries
        self._hedge_after_s = hedge_after_s
        self.num_hedged = 0
        """Calls that were also made to a second member."""

    def resize(self, workers: Sequence[ScorePort]) -> None:
        """From now on these are the members; calls to those that leave go on to their end.

        Raises:
            ValueError: nobody would be left.
        """
        if not workers:
            raise ValueError("a ScorePool needs at least one worker: add the new ones before the last one leaves")
        known = {id(member.port): member for member in self._members}
        self._members = [known.get(id(worker)) or _Member(worker) for worker in workers]

    async def score(self, task: Task, answers: Sequence[str], trajectories: Sequence[Trajectory]) -> list[Verdict]:
        """One verdict per answer; after the last retry an infra_error, which masks the samples."""
        tried: set[int] = set()
        error: BaseException | None = None
        for _ in range(self._num_retries + 1):
            try:
                return await self._hedged(tried, task, answers, trajectories)
            except self._lost as fault:
                error = fault
        details = {"error": f"{type(error).__name__}: {error}"}
        return [Verdict.unscored(Status.INFRA_ERROR, extras=details) for _ in answers]

    async def _hedged(
        self, tried: set[int], task: Task, answers: Sequence[str], trajectories: Sequence[Trajectory]
    ) -> list[Verdict]:
        """The first reply of one member, or of two when the first is slow; raises when all that were asked are lost."""
        calls = {self._ask(tried, task, answers, trajectories)}
        try:
            if self._hedge_after_s is not None and len(self._members) > 1:
                done, _ = await asyncio.wait(calls, timeout=self._hedge_after_s)
                if not done:
                    self.num_hedged += 1
                    calls.add(self._ask(tried, task, answers, trajectories))
            while True:
                done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
                for call in done:
                    if not waiting or not isinstance(call.exception(), self._lost):
                        return call.result()
                calls = waiting
        finally:
            for call in calls:
                call.cancel()

    def _ask(
        self, tried: set[int], task: Task, answers: Sequence[str], trajectories: Sequence[Trajectory]
    ) -> asyncio.Task[list[Verdict]]:
        """Asks the least busy member that was not asked yet; when all were, any may have been restarted meanwhile."""
        candidates = [m for m in self._members if id(m) not in tried] or self._members
        member = min(candidates, key=lambda m: m.pending)
        tried.add(id(member))
        return member.ask(task, answers, trajectories)
