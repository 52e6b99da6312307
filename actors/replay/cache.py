"""ReplayCache: the replay core behind async methods that wait, with a reason, until they can be served."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from actors.config import ReplayConfig
from actors.ports import BatchLease, RunFinished, StaleEpochError, StalledError, Ticket
from actors.replay.core import ReplayCore
from actors.replay.log import ReplayLog
from rewards.trajectory import Group, PolicyVersion

LEARNER = "learner"
"""The waiter for batches, as it is named beside the workers."""

Served = TypeVar("Served")


@dataclass(eq=False, slots=True)
class _Waiter(Generic[Served]):
    """A caller that could not be served yet.

    Attributes:
        attempt: gives what it waits for, or None while that is impossible.
        reason: what is missing.
    """

    name: str
    attempt: Callable[[], Served | None]
    reason: Callable[[], str]
    future: asyncio.Future[Served]


class ReplayCache:
    """Implements RolloutReplayPort and LearnerReplayPort. Knows nothing of Ray; one event loop calls it.

    Consumes ticket requests, scored groups, leases, commits, seals; produces tickets and batches; a ticket waits for
    admission (unblocked by commits, drops and returned tickets), a lease for a full batch (unblocked by puts).
    """

    def __init__(
        self,
        config: ReplayConfig,
        *,
        directory: Path | None,
        seed: int,
        incarnation: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Restores itself from its folder.

        Args:
            directory: of log and snapshots; None keeps everything in memory.
            seed: decides the order in which frozen groups are handed out.
            incarnation: start of the run; tickets and the lease of an earlier process of the same one stay valid.
            clock: seconds, never going back; decides when tickets and leases expire.

        Raises:
            CorruptLogError: the folder's history is damaged.
        """
        log = None if directory is None else ReplayLog(directory)
        self._core = ReplayCore(config, seed=seed, log=log, incarnation=incarnation, now=clock())
        self._clock = clock
        self._timeout_s = config.wait_timeout_s
        self._ticket_waiters: list[_Waiter[Ticket]] = []
        self._lease_waiters: list[_Waiter[BatchLease]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._finished = False

    # -- RolloutReplayPort ----------------------------------------------------------------------------------------

    async def take_ticket(self, worker_id: str, group_size: int, key: str = "") -> Ticket:
        """Waits for admission, in turn; repeating a key gives the same ticket. Raises StalledError at the deadline,
        RunFinished at the end."""
        core = self._core
        waiter = _Waiter(
            worker_id,
            lambda: core.take_ticket(worker_id, group_size, self._clock(), key),
            lambda: core.admission().reason,
            asyncio.get_running_loop().create_future(),
        )
        try:
            return await self._served(self._ticket_waiters, waiter)
        except asyncio.CancelledError:
            if _has_result(waiter.future):  # served and cancelled at the same time: nobody would use the ticket
                await self.return_ticket(waiter.future.result().ticket_id, "cancelled")
            raise

    async def return_ticket(self, ticket_id: str, reason: str) -> None:
        """Gives the right back without a group: dropped, failed, cancelled."""
        self._core.return_ticket(ticket_id, reason)
        self._serve()

    async def release_worker(self, worker_id: str) -> None:
        """Whoever had this name is gone: its tickets come back at once, so that others may sample in their place, and
        its requests that still wait are given up, or the next tickets would go to nobody."""
        self._core.release_worker(worker_id)
        for waiter in self._ticket_waiters:
            if waiter.name == worker_id and not waiter.future.done():
                waiter.future.set_exception(StaleEpochError(f"{worker_id} was replaced while it waited for a ticket"))
        self._serve()

    async def put(self, group: Group) -> str | None:
        """Stores a scored group on its ticket; why it was refused, or None. Same id and payload: same answer again;
        other payload: ValueError.

        A group that cannot be trained on is refused: its ticket comes back and the reason is counted.
        """
        reason = self._core.put(group)
        self._serve()
        return reason

    # -- LearnerReplayPort ----------------------------------------------------------------------------------------

    async def lease(self, step: int) -> BatchLease:
        """Waits for a full batch for this step; repeating the call returns the same lease.

        Raises:
            StalledError: at the deadline.
            RunFinished: at the end.
            StaleEpochError: the step is already committed.
            ValueError: steps before it are not committed.
        """
        core, began = self._core, time.monotonic()
        waiter = _Waiter(
            LEARNER,
            lambda: core.lease(step, self._clock()),
            lambda: core.shortage(step),
            asyncio.get_running_loop().create_future(),
        )
        lease = await self._served(self._lease_waiters, waiter)
        return replace(lease, waited_s=time.monotonic() - began)

    async def commit(
        self,
        step: int,
        lease_id: str,
        *,
        dropped: Mapping[str, str] | None = None,
        measured: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        """The optimizer step is done. `dropped` names groups that were not trained, with the reason; `measured` says
        what the learner saw of the others (ratio, clipped), which prioritised tables draw by.

        Raises:
            StaleEpochError: the lease expired or was rolled back.
            ValueError: it was for another step, or `dropped` names groups it does not hold.
        """
        self._core.commit(step, lease_id, dropped, measured)
        self._serve()

    async def announce_version(self, version: PolicyVersion, step: int) -> None:
        """Weights `version` contain `step` committed steps; told before anyone can sample with them.

        Raises:
            ValueError: the version is known with another step, or the step is not committed.
        """
        self._core.announce_version(version, step)

    async def seal(self, step: int) -> None:
        """The checkpoint that covers this step is durable. Raises ValueError when the step is not committed."""
        self._core.seal(step)

    # -- the run --------------------------------------------------------------------------------------------------

    async def preload(self, groups: Sequence[Group]) -> None:
        """Stores groups of frozen sources; known ones are left as they are, so a resumed run may repeat the call.

        Raises:
            ValueError: a source no batch takes, or another group under a known id; then none was stored.
        """
        self._core.preload(groups)
        self._serve()

    async def rollback(self, step: int, batches: Mapping[int, Sequence[str]]) -> None:
        """History continues from a checkpoint after `step` committed steps that were trained on `batches`.

        Raises:
            ValueError: the manifest does not cover every step before `step`.
        """
        self._core.rollback(step, batches)
        self._serve()

    async def snapshot(self) -> str:
        """Makes everything up to now durable; path of the snapshot, empty without a folder."""
        return self._core.snapshot()

    async def finish(self) -> None:
        """Ends all waits with RunFinished, now and later; what is in flight may still be put, committed, returned."""
        self._finished = True
        for waiter in (*self._ticket_waiters, *self._lease_waiters):
            if not waiter.future.done():
                waiter.future.set_exception(RunFinished("the run has ended"))

    async def stats(self) -> dict[str, Any]:
        """Flat numbers (see `actors.replay.stats`), and under `waits` the reason of everyone who waits."""
        self._serve()
        waiters = [w for w in (*self._ticket_waiters, *self._lease_waiters) if not w.future.done()]
        return {
            **self._core.stats(),
            "waiting_for_ticket": sum(not w.future.done() for w in self._ticket_waiters),
            "waits": {waiter.name: waiter.reason() for waiter in waiters},
        }

    # -- waiting --------------------------------------------------------------------------------------------------

    async def _served(self, queue: list[_Waiter[Served]], waiter: _Waiter[Served]) -> Served:
        """What the waiter asks for, in its turn; a cancelled one leaves the queue and takes nothing with it."""
        if self._finished:
            raise RunFinished("the run has ended")
        queue.append(waiter)
        try:
            self._serve()
            if not waiter.future.done():
                await asyncio.wait({waiter.future}, timeout=self._timeout_s)
        finally:
            queue.remove(waiter)
            if not waiter.future.cancel() and not waiter.future.cancelled():
                waiter.future.exception()  # seen, also when the caller was cancelled and will not look
            self._arm_timer()
        if waiter.future.cancelled():
            raise StalledError(f"{waiter.name} waited {self._timeout_s:g} s: {waiter.reason()}")
        return waiter.future.result()

    def _serve(self) -> None:
        """Takes back what expired, then gives everyone in line what has become possible."""
        self._core.expire(self._clock())
        for queue in (self._ticket_waiters, self._lease_waiters):
            for waiter in queue:
                if not waiter.future.done() and not _try_to_serve(waiter):
                    break  # those behind it wait for the same thing
        self._arm_timer()

    def _arm_timer(self) -> None:
        """Wakes the waiters when the next ticket or lease expires; nobody waits, nothing ticks."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._core.next_deadline()
        if deadline is not None and (self._ticket_waiters or self._lease_waiters):
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, deadline - self._clock()), self._serve)


def _try_to_serve(waiter: _Waiter[Any]) -> bool:
    """False when what it waits for is still impossible; an error of the attempt is its answer."""
    try:
        served = waiter.attempt()
    except Exception as error:
        waiter.future.set_exception(error)
        return True
    if served is None:
        return False
    waiter.future.set_result(served)
    return True


def _has_result(future: asyncio.Future[Any]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None
