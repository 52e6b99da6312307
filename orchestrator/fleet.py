"""RolloutFleet: the rollout workers of one run, replaced when they are lost, more or fewer of them while it trains."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol

from actors.rollout_worker import PinnedEvaluation
from orchestrator.quietly import quietly
from orchestrator.recorder import RunRecorder
from rewards.task import Task

DRAIN_TIMEOUT_S = 600.0
"""A worker that leaves may finish its groups this long; then it is ended, and its tickets are given out again."""


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


class RolloutSource(Protocol):
    """Where rollout workers come from and go to: this process, or a cluster."""

    lost: tuple[type[BaseException], ...]
    """Exceptions that mean a worker's process or engine is gone, so that another may take its place."""

    async def spawn(self, name: str) -> RolloutBox:
        """A worker that has not started; what is left of an earlier one of this name is removed first."""
        ...

    async def remove(self, name: str) -> None:
        """Frees what a worker held that is gone."""
        ...


PREFIX = "rollout-"
"""Begins the name of every rollout worker; a number follows that is never given twice."""


def first_names(num_workers: int) -> list[str]:
    return [f"{PREFIX}{number}" for number in range(num_workers)]


class FleetSizeError(ValueError):
    """A number of workers that this run cannot have now."""


class RolloutFleet:
    """Starts, follows, replaces and resizes the rollout workers of a run.

    A newcomer joins by pulling the newest weights and serves nothing before it has verified them; a worker leaves by
    finishing the groups it has begun. So the number of workers changes how fast a run is, never what it computes.

    Consumes the desired size; produces worker states; waits for the workers' loops; ended by `finish`.

    Args:
        names: of the first workers.
        release: gives back what a lost worker held in the replay cache.
        max_respawns: replacements in the whole run before a loss ends it.
        sample: False for runs whose workers only evaluate.
        keep_names: writes down which workers the run should have, for a supervisor that takes this one's place.
    """

    def __init__(
        self,
        names: Sequence[str],
        source: RolloutSource,
        recorder: RunRecorder,
        release: Callable[[str], Awaitable[None]],
        *,
        model_path: str,
        max_respawns: int,
        sample: bool,
        keep_names: Callable[[Sequence[str]], None],
    ) -> None:
        self.workers: dict[str, RolloutBox] = {}
        """Those that live and belong to the run, oldest first."""
        self._names = list(names)
        """Those that should; the first one never leaves, because it evaluates."""
        self._num_named = 1 + max(int(name.removeprefix(PREFIX)) for name in names)
        self._keep_names = keep_names
        keep_names(self._names)
        self._source, self._recorder, self._release = source, recorder, release
        self._model_path, self._max_respawns, self._sample = model_path, max_respawns, sample
        self._respawns = 0
        self._lives: dict[str, asyncio.Task[None]] = {}
        self._joining: set[str] = set()
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._failed: asyncio.Future[None] | None = None
        self._finishing = False

    @property
    def size(self) -> int:
        """Workers that the run has or waits for; without those that leave."""
        return len(self._names)

    @property
    def is_serving(self) -> bool:
        return self._failed is not None and not self._finishing

    async def start(self) -> None:
        """All first workers, ready to serve."""
        for name in self._names:
            self.workers[name] = await self._source.spawn(name)
        await asyncio.gather(*(self._start(name, worker) for name, worker in self.workers.items()))

    async def attach(self) -> None:
        """As `start`, for workers that another supervisor has started: they may be at work, or lost meanwhile."""
        for name in self._names:
            self.workers[name] = await self._source.spawn(name)
        await asyncio.gather(*(self._attach(name, worker) for name, worker in list(self.workers.items())))

    async def _attach(self, name: str, worker: RolloutBox) -> None:
        try:
            await self._start(name, worker)
        except self._source.lost as error:
            await self.replaced(name, worker, error)

    async def serve(self) -> None:
        """Runs every worker's loop until `finish`; raises the fault nobody can make good."""
        self._failed = asyncio.get_running_loop().create_future()
        for name, worker in self.workers.items():
            self._live(name, self._follow(name, worker))
        await self._failed

    async def finish(self) -> None:
        """Drains all workers and waits for the ends of their loops; those still on their way in are turned back."""
        self._finishing = True
        for name in self._joining & set(self._lives):
            self._lives[name].cancel()
        await asyncio.gather(*(quietly(worker.drain()) for worker in self.workers.values()))
        await asyncio.gather(*self._lives.values(), *self._leaving.values(), return_exceptions=True)
        if self._failed is not None and not self._failed.done():
            self._failed.set_result(None)

    async def close(self) -> None:
        await asyncio.gather(*(quietly(worker.close()) for worker in self.workers.values()))

    async def resize(self, size: int) -> None:
        """Calls newcomers, or tells the youngest workers to leave; returns before they are ready or gone.

        Raises:
            FleetSizeError: less than one worker, or the run does not train (yet, or any more).
        """
        if size < 1:
            raise FleetSizeError(f"rollout={size}: the first rollout worker stays, because it evaluates; at least 1")
        if not self.is_serving:
            raise FleetSizeError("the run is not training now: workers join and leave only while it does; try again")
        while len(self._names) < size:
            name = f"{PREFIX}{self._num_named}"
            self._num_named += 1
            self._names.append(name)
            self._live(name, self._join(name))
            await self._recorder.event("rollout_joining", {"worker": name})
        leaving, self._names = self._names[size:], self._names[:size]
        self._keep_names(self._names)
        for name in leaving:
            self._leaving[name] = asyncio.ensure_future(self._leave(name))

    async def replaced(self, name: str, lost: RolloutBox, error: BaseException) -> None:
        """Returns when another worker stands in the place of a lost one, whoever noticed the loss first.

        Raises:
            BaseException: the error, when it cannot be replaced.
        """
        if not self.is_serving:
            await self._note_lost(name, error)
            worker = self.workers[name] = await self._source.spawn(name)
            await self._start(name, worker)
        while self.workers[name] is lost:  # its loop notices too, and replaces it  # noqa: ASYNC110
            await asyncio.sleep(0.1)

    # -- one worker ---------------------------------------------------------------------------------------------

    def _live(self, name: str, life: Coroutine[Any, Any, None]) -> None:
        task = self._lives[name] = asyncio.ensure_future(life)
        task.add_done_callback(self._life_ended)

    def _life_ended(self, life: asyncio.Task[None]) -> None:
        error = None if life.cancelled() else life.exception()
        if error is not None and self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)

    async def _follow(self, name: str, worker: RolloutBox) -> None:
        """A worker's loop, and those of its replacements, until it drains or leaves."""
        started = True
        while True:
            try:
                if not started:
                    await self._start(name, worker)
                    await self._recorder.event("rollout_replaced", {"worker": name})
                await worker.run(sample=self._sample)
                self._recorder.worker_state(name, "drained")
                return
            except Exception as error:
                if self._finishing or name in self._leaving:
                    return  # nobody takes its place
                await self._note_lost(name, error)
            worker, started = await self._source.spawn(name), False
            if name in self._leaving:
                return
            self.workers[name] = worker

    async def _join(self, name: str) -> None:
        """A newcomer that does not get as far as serving is given up, and the run goes on without it."""
        self._joining.add(name)
        try:
            worker = self.workers[name] = await self._source.spawn(name)
            await self._start(name, worker)
        except Exception as error:
            if name not in self._leaving:
                await self._give_up(name, error)
            return
        finally:
            self._joining.discard(name)
        await self._recorder.event("rollout_joined", {"worker": name})
        if name not in self._leaving:
            await self._follow(name, worker)

    async def _give_up(self, name: str, error: BaseException) -> None:
        self._names.remove(name)
        self._keep_names(self._names)
        worker = self.workers.pop(name, None)
        self._recorder.worker_state(name, "lost")
        await self._recorder.event("rollout_not_joined", {"worker": name, "error": repr(error)})
        if worker is not None:
            await quietly(worker.close())
        await quietly(self._source.remove(name))
        await self._release(name)

    async def _leave(self, name: str) -> None:
        """Finishes the groups in flight, then frees what the worker held."""
        self._recorder.worker_state(name, "draining")
        if name in self._joining:
            self._lives[name].cancel()
        if worker := self.workers.get(name):
            await quietly(worker.drain())
        await asyncio.wait([self._lives[name]], timeout=DRAIN_TIMEOUT_S)
        if worker := self.workers.pop(name, None):
            await quietly(worker.close())
        await quietly(self._source.remove(name))
        await quietly(self._release(name))
        self._recorder.worker_state(name, "left")
        await self._recorder.event("rollout_left", {"worker": name})

    async def _start(self, name: str, worker: RolloutBox) -> None:
        self._recorder.worker_state(name, "starting")
        await worker.start(self._model_path)
        self._recorder.worker_state(name, "ready")

    async def _note_lost(self, name: str, error: BaseException) -> None:
        """Raises the error when nobody can replace the worker, or too many were replaced already."""
        self._recorder.worker_state(name, "lost")
        await self._recorder.event("rollout_lost", {"worker": name, "error": repr(error)})
        if not isinstance(error, self._source.lost) or self._respawns >= self._max_respawns:
            raise error
        self._respawns += 1
        await self._release(name)
