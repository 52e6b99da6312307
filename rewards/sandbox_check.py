"""Finds out whether the sandbox keeps its promises on this machine, before the first reward depends on it."""

from __future__ import annotations

import functools
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rewards import sandbox
from rewards.sandbox import Limits, Outcome, SandboxError, Tier
from rewards.task import Task
from rewards.verifiers.code import code

ROOMY_S = 20.0
"""Wall clock of programs that should end by themselves, on a machine as busy as a training run makes it."""
GONE_WITHIN_S = 5.0
TESTS = {"entry_point": "add", "cases": [{"args": [1, 2], "expected": 3}, {"args": [5, 5], "expected": 10}]}
HONEST = "def add(a, b):\n    return a + b"
FORGED = """
import os
class Any:
    __eq__ = lambda *_: True
add = lambda a, b: Any()
os.write(1, b'passed')
os._exit(0)
"""
NAMED_CHILD = "import os, sys\nos.execv(sys.executable, [{name!r}, '-c', 'import time; time.sleep(300)'])"
DAEMON = """
import os, time
try:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            {child}
        os._exit(0)
except OSError:
    pass
time.sleep(0.3)
"""
BOMB = """
import os, time
for _ in range(500):
    try:
        if os.fork() == 0:
            {child}
    except OSError:
        break
time.sleep(300)
"""
HOG = """
held = []
try:
    while True:
        held.append(bytearray(16 << 20))
except MemoryError:
    print(len(held))
"""
SPY = """
import os, socket
seen = []
try:
    seen.append(open({file!r}).read())
except OSError:
    pass
seen += list(os.environ.values())
for family, kind, address in {addresses!r}:
    try:
        with socket.socket(family, kind) as s:
            s.settimeout(0.5)
            s.connect(address)
            s.send(b'x')
    except OSError:
        pass
print(seen)
"""


@dataclass(frozen=True, slots=True)
class SelfTest:
    """What was found.

    Attributes:
        failures: by point, what went wrong; empty when the sandbox can be trusted.
    """

    tier: Tier
    failures: dict[str, str]
    seconds: float

    def require(self) -> None:
        """Raises SandboxError when a promise is not kept."""
        if self.failures:
            details = "; ".join(f"{point}: {fault}" for point, fault in self.failures.items())
            raise SandboxError(
                f"the sandbox (tier {self.tier}) does not keep its promises on this machine, so model-written code is "
                f"refused. {details}. Run `braid doctor`, or set unsafe_no_sandbox (or "
                f"{sandbox.ALLOW_NONE_VARIABLE}=1) on a machine that holds nothing worth taking."
            )


@functools.cache
def self_test() -> SelfTest:
    """The nine points; about two seconds, once per process."""
    start, found, failures = time.monotonic(), sandbox.tier(), {}
    if found == "none":
        failures["tier"] = "neither namespaces nor Landlock isolate a program here"
    else:
        for point, check in POINTS.items():
            try:
                fault = check()
            except (SandboxError, OSError) as error:
                fault = str(error)
            if fault:
                failures[point] = fault
    return SelfTest(found, failures, time.monotonic() - start)


def _run(source: str, **limits: Any) -> Outcome:
    return sandbox.run_python(["-c", source], limits=replace(Limits(wall_s=ROOMY_S), **limits))


def _score(source: str) -> float | None:
    task = Task(task_id="self-test", prompt="", metadata={"tests": TESTS})
    return code(f"```python\n{source}\n```", task, limits={"wall_s": ROOMY_S}).score


def _honest_pays() -> str | None:
    score = _score(HONEST)
    return None if score == 1.0 else f"an honest program earned {score}"


def _forging_does_not() -> str | None:
    score = _score(FORGED)
    return None if score == 0.0 else f"a forging program earned {score}"


def _canaries_stay_hidden() -> str | None:
    canary = secrets.token_hex(8)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        file = folder / "canary"
        file.write_text(canary)
        listeners, addresses = stack.enter_context(_listeners(folder))
        stack.enter_context(_variable("BRAID_CANARY", canary))
        outcome = _run(SPY.format(file=str(file), addresses=addresses))
        if outcome.exit_code != 0:
            return f"the spy failed: {outcome.stderr[-200:].decode(errors='replace')}"
        if canary.encode() in outcome.stdout:
            return "a program read a file or a variable of this process"
        reached = [addresses[i][:2] for i, listener in enumerate(listeners) if _was_reached(listener)]
    return f"a program reached sockets {reached}" if reached else None


def _daemon_is_gone() -> str | None:
    name = f"braid-daemon-{secrets.token_hex(4)}"
    _run(DAEMON.format(child=NAMED_CHILD.format(name=name).replace("\n", "; ")))
    return _still_there(name)


def _bomb_is_gone() -> str | None:
    name = f"braid-bomb-{secrets.token_hex(4)}"
    outcome = _run(BOMB.format(child=NAMED_CHILD.format(name=name).replace("\n", "; ")), wall_s=1.0)
    if outcome.fate != "timeout":
        return f"the bomb {outcome.fate}: {outcome.stderr[-200:].decode(errors='replace')}"
    return _still_there(name) or _honest_pays()


def _hog_is_stopped() -> str | None:
    outcome = _run(HOG, memory_mb=256)
    held = int(outcome.stdout or 0) << 4
    return None if held < 256 else f"a program held {held} MB of 256"


def _large_output_passes() -> str | None:
    size = len(_run("import sys; sys.stdout.write('x' * 300_000)").stdout)
    return None if size == 300_000 else f"{size} of 300000 bytes came back"


def _wall_limit_fires() -> str | None:
    start = time.monotonic()
    outcome = _run("import time; time.sleep(300)", wall_s=0.5)
    seconds = time.monotonic() - start
    return None if outcome.fate == "timeout" and seconds < ROOMY_S else f"{outcome.fate} after {seconds:.1f} s"


POINTS: dict[str, Callable[[], str | None]] = {
    "honest program": _honest_pays,
    "forging program": _forging_does_not,
    "canaries": _canaries_stay_hidden,
    "daemon": _daemon_is_gone,
    "fork bomb": _bomb_is_gone,
    "memory": _hog_is_stopped,
    "output": _large_output_passes,
    "wall clock": _wall_limit_fires,
}
"""Eight of the nine points; the first is that there is a tier at all."""


def processes_named(name: str) -> list[int]:
    """Running processes whose command line begins with a name, as /proc tells."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError, PermissionError):  # it may end while it is looked at
                if (folder / "cmdline").read_bytes().startswith(name.encode()):
                    found.append(int(folder.name))
    return found


def _still_there(name: str) -> str | None:
    deadline = time.monotonic() + GONE_WITHIN_S
    while processes := processes_named(name):
        if time.monotonic() > deadline:
            return f"processes {processes[:5]} outlived their program"
        time.sleep(0.05)
    return None


@contextmanager
def _listeners(folder: Path) -> Iterator[tuple[list[socket.socket], list[tuple[int, int, Any]]]]:
    """Sockets of four kinds that nobody should reach, and their addresses."""
    kinds = [
        (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
        (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
        (socket.AF_UNIX, socket.SOCK_DGRAM, str(folder / "socket")),
        (socket.AF_UNIX, socket.SOCK_DGRAM, f"\0braid-{secrets.token_hex(4)}"),
    ]
    with ExitStack() as stack:
        listeners = []
        for family, kind, address in kinds:
            listener = stack.enter_context(socket.socket(family, kind))
            listener.bind(address)
            if kind == socket.SOCK_STREAM:
                listener.listen()
            listener.setblocking(False)
            listeners.append(listener)
        (folder / "socket").chmod(0o777)
        named = zip(kinds, listeners, strict=True)
        yield listeners, [(int(f), int(k), s.getsockname() if f == socket.AF_INET else a) for (f, k, a), s in named]


def _was_reached(listener: socket.socket) -> bool:
    try:
        if listener.type == socket.SOCK_STREAM:
            listener.accept()[0].close()
        else:
            listener.recv(1)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
