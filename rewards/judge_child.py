"""What runs inside a killable child process: reads tasks and answers, judges, writes verdicts.

Started by `rewards.isolation` as `python -P -m rewards.judge_child FD`; FD is one end of a socket pair.
"""

from __future__ import annotations

import math
import os
import resource
import signal
import socket
import sys
import threading
import time
from typing import Any

from rewards import wire
from rewards.config import RewardConfig
from rewards.rubric import Rubric
from rewards.verdict import Status, Verdict

PARENT_CHECK_S = 1.0
CPU_MARGIN_S = 5
"""CPU seconds beyond the wall-clock limit after which the kernel ends the child, should nobody be left to kill it."""


def main(descriptor: int) -> None:
    """Serves one connection until it closes."""
    connection = socket.socket(fileno=descriptor)
    connection.set_inheritable(False)
    setup = wire.receive(connection)
    threading.Thread(target=_die_with_parent, args=(setup["parent_pid"],), daemon=True).start()
    try:
        config = RewardConfig.model_validate(setup["config"])
        _limit_resources(config.memory_mb)
        rubric = Rubric(config)
    except Exception as error:  # attributed: told to the parent, which raises it as the reason no child starts
        wire.send(connection, wire.encode({"error": f"{type(error).__name__}: {error}"}))
        return
    wire.send(connection, wire.encode({"ready": True}))
    while True:
        try:
            request = wire.receive(connection)
        except wire.FrameError:
            return
        for job in request:  # one reply each, as soon as it is known: the far side's clock runs for one job at a time
            _limit_cpu(config.timeout_s)
            task = wire.task_from_json(job["task"])
            if job["scope"] == "group":
                judged = rubric.group_parts(job["answers"], task)
            else:
                judged = [rubric.parts(answer, task) for answer in job["answers"]]
            wire.send(connection, _encode(judged))


def _encode(judged: list[dict[str, Verdict]]) -> bytes:
    """Verdicts of each answer by component; one whose extras are not JSON costs only itself."""
    data = [{name: wire.verdict_to_json(verdict) for name, verdict in parts.items()} for parts in judged]
    try:
        return wire.encode(data)
    except (TypeError, ValueError, RecursionError):
        return wire.encode([{name: _writable(verdict) for name, verdict in parts.items()} for parts in data])


def _writable(verdict: dict[str, Any]) -> dict[str, Any]:
    try:
        wire.encode(verdict)
    except (TypeError, ValueError, RecursionError) as error:
        fault = {"error": f"the verdict's extras cannot be written as JSON: {error}"}
        return wire.verdict_to_json(Verdict.unscored(Status.INFRA_ERROR, extras=fault))
    return verdict


def _limit_resources(memory_mb: int) -> None:
    _lower_limit(resource.RLIMIT_CORE, 0)
    _lower_limit(resource.RLIMIT_AS, memory_mb << 20)


def _lower_limit(kind: int, limit: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    try:
        resource.setrlimit(kind, (limit, limit))
    except (OSError, ValueError) as error:  # macOS knows RLIMIT_AS but refuses to set it
        if sys.platform == "linux":
            raise
        print(f"reward child runs without resource limit {kind}: {error}", file=sys.stderr)


def _limit_cpu(timeout_s: float) -> None:
    """Moves the soft CPU limit ahead of what was used so far: a second line of defence behind the parent's clock."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    threads = os.cpu_count() or 1
    soft = math.ceil(time.process_time() + timeout_s * threads) + CPU_MARGIN_S
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _die_with_parent(parent_pid: int) -> None:
    """Ends this process and everything it started once the parent is gone, even in the middle of a verifier."""
    while os.getppid() == parent_pid:
        time.sleep(PARENT_CHECK_S)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]))
