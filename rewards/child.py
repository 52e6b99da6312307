"""One killable, limited child process: nothing a verifier does in it can stop or corrupt its caller."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from rewards import wire
from rewards.config import RewardConfig

START_TIMEOUT_S = 120.0
"""A child that is not ready by then counts as unable to start; the imports of its verifiers are included."""


class ChildStartError(RuntimeError):
    """A child process could not start; the message carries its own reason."""


class Slot:
    """A place for one child, started when it is first needed and again after a loss."""

    def __init__(self, config: RewardConfig) -> None:
        self._config = config
        self._child: Child | None = None
        self._is_ready = False
        self._closed = False
        self._starting = threading.Lock()
        self._changing = threading.Lock()
        """Held for moments only, so that `close` need not wait for a start that hangs."""

    def child(self) -> Child:
        """The child, ready to judge.

        Raises:
            ChildStartError: it cannot start, or the slot was closed.
        """
        with self._starting:
            with self._changing:
                if self._closed:
                    raise ChildStartError("the pool of reward children is closed")
                if self._child is None:
                    self._child, self._is_ready = Child(self._config), False
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


class Child:
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

    def judge(self, requests: Sequence[bytes]) -> Iterator[Any]:
        """Asks for verdicts, and yields one reply per request, in order; the clock runs for one at a time.

        Raises:
            TimeoutError: no reply within the time limit; the child is still busy and must be killed.
            FrameError: the child is gone or cannot be trusted any more.
        """
        self._connection.settimeout(self._config.timeout_s)
        try:
            wire.send(self._connection, b"[" + b",".join(requests) + b"]")
            for _ in requests:
                yield wire.receive(self._connection)
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
