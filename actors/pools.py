"""Many workers behind one port: least-loaded routing, and a fault that costs one try instead of the run."""

from __future__ import annotations

from collections.abc import Sequence

from actors.ports import ScorePort
from rewards.task import Task
from rewards.trajectory import Trajectory
from rewards.verdict import Status, Verdict


class ScorePool:
    """Reward workers as one ScorePort: the least busy one judges; a lost one is routed around.

    Args:
        workers: the ports of the pool's members.
        lost: exception types that mean the worker, not the answer, failed.
        num_retries: further members to ask before the samples are declared unscored.
    """

    def __init__(
        self, workers: Sequence[ScorePort], *, lost: tuple[type[BaseException], ...] = (), num_retries: int = 3
    ) -> None:
        if not workers:
            raise ValueError("a ScorePool needs at least one worker")
        self._workers = list(workers)
        self._pending = [0] * len(workers)
        self._lost = lost
        self._num_retries = num_retries

    async def score(self, task: Task, answers: Sequence[str], trajectories: Sequence[Trajectory]) -> list[Verdict]:
        """One verdict per answer; after the last retry an infra_error, which masks the samples."""
        tried: set[int] = set()
        error: BaseException | None = None
        for _ in range(self._num_retries + 1):
            index = self._least_loaded(tried)
            self._pending[index] += 1
            try:
                return await self._workers[index].score(task, answers, trajectories)
            except self._lost as fault:
                error = fault
                tried.add(index)
            finally:
                self._pending[index] -= 1
        details = {"error": f"{type(error).__name__}: {error}"}
        return [Verdict.unscored(Status.INFRA_ERROR, extras=details) for _ in answers]

    def _least_loaded(self, tried: set[int]) -> int:
        """Prefers members not tried for this call; when all were, any may have been restarted meanwhile."""
        candidates = [i for i in range(len(self._workers)) if i not in tried] or list(range(len(self._workers)))
        return min(candidates, key=self._pending.__getitem__)
