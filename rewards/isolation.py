"""Runs rubrics in killable child processes: many answers wait in one queue, and no answer holds up another."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from rewards import wire
from rewards.child import ChildStartError, Slot
from rewards.combination import Parts, combine
from rewards.config import RewardConfig
from rewards.task import Task
from rewards.verdict import Status, Verdict

MAX_BACKOFF_S = 5.0
BATCH_WORK_S = 0.02
"""Work handed to a child at once: enough to hide the way there and back, little enough to be shared out evenly."""
STEAL_AFTER_S = 0.1
"""A child this long at one answer lets idle ones judge those it was handed together with it."""
RECENT = 256
"""Verdicts that the quantiles of waiting and service time are taken over."""


class ChildDiedError(RuntimeError):
    """A child ended by itself, or talked nonsense, in the middle of a call."""


@dataclass(eq=False, slots=True, kw_only=True)
class _Job:
    """One question to a child: an answer, or the answers of a group.

    Attributes:
        names: components that are judged.
        asked_at, started_at: monotonic clock; None until a child has it.
        num_holders: children that have it.
    """

    request: bytes
    names: tuple[str, ...]
    num_answers: int
    asked_at: float
    future: Future[list[Parts]] = field(default_factory=Future)
    started_at: float | None = None
    num_holders: int = 0
    num_faults: int = 0

    def every(self, verdict: Verdict) -> list[Parts]:
        """The same verdict for all components of all answers."""
        return [dict.fromkeys(self.names, verdict) for _ in range(self.num_answers)]


@dataclass(eq=False, slots=True, kw_only=True)
class _Driver:
    """A thread with a child of its own; the first job of `batch` is the one the child works at, since `began`."""

    slot: Slot
    batch: list[_Job] = field(default_factory=list)
    began: float = 0.0
    is_dismissed: bool = False
    thread: threading.Thread | None = None


class ChildPool:
    """`config.processes_per_worker` children behind async methods; as many answers are judged at a time.

    Each child is driven by a thread, so a busy event loop does not delay the clock of a running verifier, and the pool
    works on any thread and under any event loop. Waiting for a free child is not on that clock, and neither is
    starting one. Answers whose verdicts take milliseconds travel several at a time; when the first of them hangs, the
    others are judged elsewhere.
    """

    def __init__(self, config: RewardConfig) -> None:
        self._config = config
        self._names = {
            scope: tuple(name for name, component in config.components.items() if component.scope == scope)
            for scope in ("sample", "group")
        }
        self._changed = threading.Condition()
        """Guards all that follows; notified when a driver may have something to do."""
        self._queue: deque[_Job] = deque()
        self._later: list[tuple[float, int, _Job]] = []
        """Heap of jobs that wait for their next try."""
        self._order = itertools.count()
        self._drivers: list[_Driver] = []
        self._closed = False
        self._typical_s: float | None = None
        self._counts: Counter[str] = Counter()
        self._seconds = {"wait": 0.0, "service": 0.0}
        self._recent: dict[str, deque[float]] = {kind: deque(maxlen=RECENT) for kind in ("wait", "service")}
        self.num_deaths = 0
        """Children that ended by themselves or could not start; those killed for time are not among them."""
        self.resize(config.processes_per_worker)

    async def start(self) -> None:
        """Starts all children at once; without it each starts when it is first needed.

        Raises:
            ChildStartError: one of them cannot start, e.g. because a verifier cannot be imported. The pool is closed.
        """
        try:
            await asyncio.gather(*(asyncio.to_thread(driver.slot.child) for driver in self._drivers))
        except ChildStartError:
            self.close()
            raise

    async def judge(self, answer: str, task: Task) -> Verdict:
        """One verdict for one answer, which is a group of its own.

        What a child says, and a `timeout` of the model's text, is final. When a child ends by itself, the answer is
        tried again in another one, at most `config.num_retries` times; then the verdict is `infra_error`.

        Raises:
            RuntimeError: the pool was closed before the call. Closed during the call, the verdict is `cancelled`.
        """
        parts: dict[str, Verdict] = {}
        if self._names["sample"]:
            parts.update(await self.judge_parts(answer, task))
        if self._names["group"]:
            parts.update((await self.judge_group([answer], task))[0])
        return combine(self._config, {name: parts[name] for name in self._config.components})

    async def judge_parts(self, answer: str, task: Task) -> Parts:
        """Verdicts of the components of scope `sample`; see `judge`."""
        return (await self._asked("sample", [answer], task))[0]

    async def judge_group(self, answers: Sequence[str], task: Task) -> list[Parts]:
        """Verdicts of the components of scope `group`, per answer; a hang is charged to all of them."""
        return await self._asked("group", answers, task) if answers else []

    async def _asked(self, scope: Literal["sample", "group"], answers: Sequence[str], task: Task) -> list[Parts]:
        names = self._names[scope]
        job = _Job(request=b"", names=names, num_answers=len(answers), asked_at=time.monotonic())
        try:
            job.request = wire.encode({"scope": scope, "answers": list(answers), "task": wire.task_to_json(task)})
        except (TypeError, ValueError, RecursionError) as error:
            extras = {"error": f"task {task.task_id!r} cannot be written as JSON: {error}"}
            return job.every(Verdict.unscored(Status.INVALID_GOLD, extras=extras))
        with self._changed:
            if self._closed:
                raise RuntimeError("the pool of reward children is closed")
            self._queue.append(job)
            self._changed.notify()
        return await asyncio.wrap_future(job.future)

    def resize(self, num_processes: int) -> None:
        """Changes how many answers are judged at a time; children that are let go finish what they are at.

        Raises:
            ValueError: num_processes < 1.
        """
        if num_processes < 1:
            raise ValueError(f"a pool needs at least one process, got {num_processes}")
        with self._changed:
            if self._closed:
                return
            for driver in self._drivers[num_processes:]:
                driver.is_dismissed = True
            del self._drivers[num_processes:]
            while len(self._drivers) < num_processes:
                driver = _Driver(slot=Slot(self._config))
                driver.thread = threading.Thread(target=self._drive, args=(driver,), name="reward-child", daemon=True)
                self._drivers.append(driver)
                driver.thread.start()
            self._changed.notify_all()

    def stats(self) -> dict[str, float]:
        """State of the queue now, totals since the start, and quantiles over the recent verdicts."""
        with self._changed:
            running = sum(len(driver.batch[:1]) for driver in self._drivers)
            sent = sum(len(driver.batch) for driver in self._drivers)
            return {
                "queued": len(self._queue) + len(self._later) + sent - running,
                "running": running,
                "processes": len(self._drivers),
                "judged": self._counts["judged"],
                "retried": self._counts["retried"],
                "hedged": self._counts["hedged"],
                "killed": self._counts["killed"],
                "wait_s": self._seconds["wait"],
                "service_s": self._seconds["service"],
                "wait_p95_s": _quantile(self._recent["wait"], 0.95),
                "service_p95_s": _quantile(self._recent["service"], 0.95),
            }

    def close(self) -> None:
        """Kills all children and waits until they are gone; calls in flight come back as `cancelled`. Repeatable."""
        with self._changed:
            self._closed = True
            waiting = [*self._queue, *(job for _, _, job in self._later)]
            self._queue.clear()
            self._later.clear()
            drivers = list(self._drivers)
            self._changed.notify_all()
        for job in waiting:
            self._resolve(job, job.every(Verdict.unscored(Status.CANCELLED)))
        for driver in drivers:
            driver.slot.close()
        for driver in drivers:
            if driver.thread is not None and driver.thread is not threading.current_thread():
                driver.thread.join()

    # -- what the drivers do ------------------------------------------------------------------------------------

    def _drive(self, driver: _Driver) -> None:
        """The life of a thread: takes jobs, has its child judge them, hands the verdicts over."""
        while self._next_batch(driver):
            try:
                self._serve(driver)
            except TimeoutError:
                exit_status = driver.slot.empty()
                if exit_status == -signal.SIGKILL:
                    self._timed_out(driver)
                else:  # it was gone before; something it started kept the connection open
                    self._died(driver, ChildDiedError(f"a reward child ended with exit status {exit_status}"))
            except wire.FrameError as error:
                exit_status = driver.slot.empty()
                self._died(driver, ChildDiedError(f"a reward child ended with exit status {exit_status}: {error}"))
            except ChildStartError as error:
                self._died(driver, error)
        driver.slot.close()

    def _serve(self, driver: _Driver) -> None:
        child = driver.slot.child()
        driver.began = time.monotonic()
        for reply in child.judge([job.request for job in driver.batch]):
            job = driver.batch[0]
            try:
                if not isinstance(reply, list) or len(reply) != job.num_answers:
                    raise ValueError(f"not verdicts of {job.num_answers} answers")
                parts: list[Parts] = [wire.parts_from_json(data, job.names) for data in reply]
            except ValueError as error:
                raise wire.FrameError(str(error)) from error
            self._finish(driver, job, parts)

    def _next_batch(self, driver: _Driver) -> bool:
        """Waits until there is something to do and puts it into `driver.batch`; False when the thread may end."""
        with self._changed:
            while True:
                if self._closed or driver.is_dismissed:
                    return False
                now = time.monotonic()
                while self._later and self._later[0][0] <= now:
                    self._queue.append(heapq.heappop(self._later)[2])
                batch = self._due(now) or self._stragglers(now)
                if batch:
                    driver.batch, driver.began = batch, now
                    for job in batch:
                        job.num_holders += 1
                        job.started_at = job.started_at or now
                    if len(batch) > 1 or self._config.hedge_after_s is not None or self._queue:
                        self._changed.notify()
                    return True
                self._changed.wait(self._next_event(now))

    def _due(self, now: float) -> list[_Job]:
        size, batch = self._batch_size(), []
        while self._queue and len(batch) < size:
            job, limit = self._queue.popleft(), self._config.max_wait_s
            if job.future.done():
                continue
            if limit is not None and now - job.asked_at > limit and job.started_at is None:
                fault = f"waited {now - job.asked_at:.1f} s for a free child, longer than max_wait_s={limit:g}"
                self._resolve(job, job.every(Verdict.unscored(Status.INFRA_ERROR, extras={"error": fault})))
                continue
            batch.append(job)
        return batch

    def _batch_size(self) -> int:
        """Jobs for one child: BATCH_WORK_S of work, but no more than its share of what waits."""
        if self._typical_s is None:
            return 1
        share = math.ceil(len(self._queue) / len(self._drivers)) if self._drivers else 1
        return max(1, min(self._config.max_batch, share, int(BATCH_WORK_S / max(self._typical_s, 1e-5))))

    def _stragglers(self, now: float) -> list[_Job]:
        """A job that another child takes too long over, or has not come to; this child asks as well."""
        for after, began, job in self._hedgeable():
            if now - began >= after:
                self._counts["hedged"] += 1
                return [job]
        return []

    def _next_event(self, now: float) -> float | None:
        """Seconds until an idle driver has something to do without anyone telling it; None: never."""
        times = [began + after for after, began, _ in self._hedgeable()]
        times += [self._later[0][0]] if self._later else []
        return max(min(times) - now, 0.001) if times else None

    def _hedgeable(self) -> list[tuple[float, float, _Job]]:
        """(seconds it may take, since when, job) of the jobs one child has that no other has as well.

        A job over which a child died is not among them: idle children would hand it round for ever.
        """
        found = []
        for driver in self._drivers:
            for place, job in enumerate(driver.batch):
                after = STEAL_AFTER_S if place else self._config.hedge_after_s
                is_alone = job.num_holders == 1 and not job.num_faults
                if after is not None and is_alone and not job.future.done():
                    found.append((after, driver.began, job))
        return found

    def _finish(self, driver: _Driver, job: _Job, parts: list[Parts]) -> None:
        """The child has judged the first job of the batch and is at the next one."""
        with self._changed:
            now = time.monotonic()
            service, driver.began = now - driver.began, now
            self._release(driver, 1)
            self._typical_s = service if self._typical_s is None else 0.9 * self._typical_s + 0.1 * service
            if not job.future.done():
                self._count(job, service)
            self._resolve(job, parts)

    def _timed_out(self, driver: _Driver) -> None:
        """The child was killed over the first job of the batch; the others go back to the queue."""
        limit = self._config.timeout_s
        with self._changed:
            job, *others = driver.batch
            self._release(driver, len(driver.batch))
            self._counts["killed"] += 1
            self._typical_s = max(self._typical_s or 0.0, BATCH_WORK_S)  # hand out one by one for a while
            if self._closed:
                return self._cancel([job, *others])
            if not job.future.done():
                self._count(job, limit)
            share = limit / len(job.names) / job.num_answers
            verdict = Verdict.floor(Status.TIMEOUT, self._config.floor, extras={"limit_s": limit}, seconds=share)
            self._resolve(job, job.every(verdict))
            self._requeue(others)

    def _died(self, driver: _Driver, fault: ChildDiedError | ChildStartError) -> None:
        """The child is gone: the first job is tried again while its budget lasts, the others lose nothing."""
        with self._changed:
            job, *others = driver.batch
            self._release(driver, len(driver.batch))
            if self._closed:
                return self._cancel([job, *others])
            self.num_deaths += 1
            self._requeue(others)
            job.num_faults += 1
            if job.future.done() or job.num_holders:
                return
            if job.num_faults > self._config.num_retries:
                extras = {"error": str(fault), "attempts": job.num_faults}
                self._resolve(job, job.every(Verdict.unscored(Status.INFRA_ERROR, extras=extras)))
                return
            self._counts["retried"] += 1
            delay = min(0.05 * 2**job.num_faults, MAX_BACKOFF_S) * random.uniform(0.5, 1.0)
            heapq.heappush(self._later, (time.monotonic() + delay, next(self._order), job))
            self._changed.notify()

    def _requeue(self, jobs: Sequence[_Job]) -> None:
        """Back to the front of the queue, for jobs that no child has any more."""
        self._queue.extendleft(job for job in reversed(jobs) if not job.future.done() and not job.num_holders)
        self._changed.notify()

    def _cancel(self, jobs: Sequence[_Job]) -> None:
        for job in jobs:
            self._resolve(job, job.every(Verdict.unscored(Status.CANCELLED)))

    def _release(self, driver: _Driver, count: int) -> None:
        for job in driver.batch[:count]:
            job.num_holders -= 1
        del driver.batch[:count]

    def _count(self, job: _Job, service: float) -> None:
        wait = (job.started_at or job.asked_at) - job.asked_at
        self._counts["judged"] += job.num_answers
        for kind, seconds in (("wait", wait), ("service", service)):
            self._seconds[kind] += seconds
            self._recent[kind].append(seconds)

    def _resolve(self, job: _Job, parts: list[Parts]) -> None:
        with suppress(InvalidStateError):  # a second child was faster, or the caller has gone
            job.future.set_result(parts)


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0
