"""Runs rubrics in killable, limited child processes: nothing a verifier does can stop or corrupt its caller."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from rewards import wire
from rewards.config import RewardConfig
from rewards.task import Task
from rewards.verdict import Status, Verdict

START_TIMEOUT_S = 120.0
"""A child that is not ready by then counts as unable to start; the imports of its verifiers are included."""
MAX_BACKOFF_S = 5.0


class ChildStartError(RuntimeError):
    """A child process could not start; the message carries its own reason."""


class ChildDiedError(RuntimeError):
    """A child ended by itself, or talked nonsense, in the middle of a call."""


class ChildPool:
    """`config.processes_per_worker` children behind one async method; as many answers are judged at a time.

    Each call is driven by a thread of the pool, so a busy event loop does not delay the clock of a running verifier,
    and the pool works on any thread and under any event loop. Waiting for a free child is not on that clock, and
    neither is starting one.
    """

    def __init__(self, config: RewardConfig) -> None:
        self._config = config
        self._threads = ThreadPoolExecutor(config.processes_per_worker, thread_name_prefix="reward-child")
        self._slots = tuple(_Slot(config) for _ in range(config.processes_per_worker))
        self._free: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        for slot in self._slots:
            self._free.put(slot)
        self._closed = False
        self.num_deaths = 0
        """Children that ended by themselves or could not start; those killed for time are not among them."""

    async def start(self) -> None:
        """Starts all children at once; without it each starts when it is first needed.

        Raises:
            ChildStartError: one of them cannot start, e.g. because a verifier cannot be imported. The pool is closed.
        """
        loop = asyncio.get_running_loop()
        try:
            await asyncio.gather(*(loop.run_in_executor(self._threads, slot.child) for slot in self._slots))
        except ChildStartError:
            self.close()
            raise

    async def judge(self, answer: str, task: Task) -> Verdict:
        """One verdict for one answer.

        What a child says, and a `timeout` of the model's text, is final. When a child ends by itself, the answer is
        tried again in another one, at most `config.num_retries` times; then the verdict is `infra_error`.

        Raises:
            RuntimeError: the pool was closed before the call. Closed during the call, the verdict is `cancelled`.
        """
        if self._closed:
            raise RuntimeError("the pool of reward children is closed")
        try:
            request = wire.encode({"answer": answer, "task": wire.task_to_json(task)})
        except (TypeError, ValueError, RecursionError) as error:
            extras = {"error": f"task {task.task_id!r} cannot be written as JSON: {error}"}
            return Verdict.unscored(Status.INVALID_GOLD, extras=extras)
        loop, last_fault = asyncio.get_running_loop(), ""
        for attempt in range(self._config.num_retries + 1):
            if attempt:
                await asyncio.sleep(min(0.05 * 2**attempt, MAX_BACKOFF_S) * random.uniform(0.5, 1.0))
            if self._closed:
                break
            try:
                return await loop.run_in_executor(self._threads, self._attempt, request)
            except (ChildDiedError, ChildStartError) as fault:
                self.num_deaths += 1
                last_fault = str(fault)
        if self._closed:
            return Verdict.unscored(Status.CANCELLED)
        return Verdict.unscored(Status.INFRA_ERROR, extras={"error": last_fault, "attempts": attempt + 1})

    def _attempt(self, request: bytes) -> Verdict:
        slot = self._free.get()
        try:
            return slot.child().judge(request)
        except TimeoutError:
            exit_status = slot.empty()
            if exit_status != -signal.SIGKILL:  # it was gone before; something it started kept the connection open
                raise ChildDiedError(f"a reward child ended with exit status {exit_status}") from None
            limit = self._config.timeout_s
            return Verdict.floor(Status.TIMEOUT, self._config.floor, extras={"limit_s": limit}, seconds=limit)
        except wire.FrameError as error:
            exit_status = slot.empty()
            raise ChildDiedError(f"a reward child ended with exit status {exit_status}: {error}") from error
        finally:
            self._free.put(slot)

    def close(self) -> None:
        """Kills all children and waits until they are gone; calls in flight come back as `cancelled`. Repeatable."""
        self._closed = True
        for slot in self._slots:
            slot.close()
        self._threads.shutdown(wait=True)


class _Slot:
    """A place for one child, started when it is first needed and again after a loss."""

    def __init__(self, config: RewardConfig) -> None:
        self._config = config
        self._child: _Child | None = None
        self._is_ready = False
        self._closed = False
        self._starting = threading.Lock()
        self._changing = threading.Lock()
        """Held for moments only, so that `close` need not wait for a start that hangs."""

    def child(self) -> _Child:
        """The child, ready to judge.

        Raises:
            ChildStartError: it cannot start, or the slot was closed.
        """
        with self._starting:
            with self._changing:
                if self._closed:
                    raise ChildStartError("the pool of reward children is closed")
                if self._child is None:
                    self._child, self._is_ready = _Child(self._config), False
                child = self._child
            if not self._is_ready:
                try:
                    child.greet()
                except ChildStartError:
                    self.empty()
                    raise
                self._is_ready = True
            return child

    def empty(self) -> int | None:
        """Kills the child, if there is one, and returns its exit status, negative for a signal."""
        with self._changing:
            child, self._child = self._child, None
            return child.kill() if child is not None else None

    def close(self) -> None:
        with self._changing:
            self._closed = True
        self.empty()


class _Child:
    """One interpreter that judges one answer at a time. Methods block; one thread at a time may call them."""

    def __init__(self, config: RewardConfig) -> None:
        self._config = config
        self._connection, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "rewards.judge_child", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a verifier prints must not mix with the output of the program it works for
                pass_fds=(theirs.fileno(),),
                env=_environment(),
                start_new_session=True,  # a group of its own, so that what it started dies with it
            )

    def greet(self) -> None:
        """Hands over the config and waits until the verifiers are imported."""
        self._connection.settimeout(START_TIMEOUT_S)
        setup = {"config": self._config.model_dump(mode="json"), "parent_pid": os.getpid()}
        try:
            wire.send(self._connection, wire.encode(setup))
            hello = wire.receive(self._connection)
        except OSError as error:
            raise ChildStartError(
                f"a reward child did not get ready: {error}. What it said is on stderr; if it ran out of memory, raise "
                f"reward.memory_mb={self._config.memory_mb}."
            ) from error
        if "error" in hello:
            raise ChildStartError(f"a reward child cannot run this rubric: {hello['error']}")

    def judge(self, request: bytes) -> Verdict:
        """Asks for one verdict.

        Raises:
            TimeoutError: none within the time limit; the child is still busy and must be killed.
            FrameError: the child is gone or cannot be trusted any more.
        """
        self._connection.settimeout(self._config.timeout_s)
        try:
            wire.send(self._connection, request)
            return wire.verdict_from_json(wire.receive(self._connection))
        except (TimeoutError, wire.FrameError):
            raise
        except (OSError, ValueError) as error:
            raise wire.FrameError(str(error)) from error

    def kill(self) -> int:
        """Ends the child and everything in its process group; returns its exit status.

        The group is signalled before the child is waited for: until then its number cannot belong to anyone else.
        """
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        exit_status = self._process.wait()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # wakes a thread that still waits for this child
        self._connection.close()
        return exit_status


def _environment() -> dict[str, str]:
    """This process's environment, with its sys.path, and one thread per numeric library: children share the cores."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    search_path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    return {**os.environ, **threads, "PYTHONPATH": search_path}
