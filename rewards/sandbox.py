"""Runs one program of unknown intent and brings back what it said: no network, no files, no time beyond its limits.

Tier A is bubblewrap's: new user, mount, PID, network, IPC and UTS namespaces, a sized temporary root with the
interpreter read-only, no capabilities, no nested user namespaces, an empty environment, a system-call filter. Tier B
does without namespaces: Landlock and a stricter filter, one process that writes nothing. What the program should have
said never enters; the caller compares outside.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from rewards import sandbox_cgroup, sandbox_filter

ALLOW_NONE_VARIABLE = "BRAID_ALLOW_NO_SANDBOX"
NOBODY = 65534
"""A user with no rights; programs of a root service run as this one, as process limits do not bind root."""
WORK_FOLDER = "/tmp"
INTERPRETER_FOLDER = "/mnt"
"""Where NOBODY finds the interpreter, which may live in the home of root."""
SYSTEM_FOLDERS = ("/usr", "/lib", "/lib64", "/bin")
PACKAGE_FOLDER = str(Path(__file__).resolve().parents[1])
WARNING = "ran without isolation: any file, secret and socket of this machine was within its reach"
PROBE_LIMIT_S = 20.0

Tier = Literal["A", "B", "none"]


class SandboxError(RuntimeError):
    """The sandbox could not be set up, which is never the program's fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one program may use. Memory, CPU and file size hold per process, the rest for all of them together."""

    wall_s: float = 4.0
    cpu_s: int = 4
    memory_mb: int = 512
    num_processes: int = 64
    disk_mb: int = 64
    file_mb: int = 8
    max_output: int = 1 << 20
    """Bytes of each output stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a program did.

    Attributes:
        fate: `exited` with `exit_code`, or stopped for `timeout` (wall clock) or `output` (a stream over its limit).
        exit_code: 128 + signal when a signal ended it; None when it was stopped.
        tier: what isolated it.
        warning: set when nothing did.
    """

    fate: Literal["exited", "timeout", "output"]
    exit_code: int | None
    stdout: bytes
    stderr: bytes
    seconds: float
    tier: Tier = "none"
    warning: str | None = None


@functools.cache
def tier() -> Tier:
    """The best one that works on this machine, found out by running a program in it."""
    if sys.platform != "linux" or shutil.which("prlimit") is None:
        return "none"
    limits = Limits(wall_s=PROBE_LIMIT_S)
    tiers: dict[Tier, Callable[[Sequence[str], bytes, Limits], Outcome]] = {"A": _run_in_namespaces, "B": _run_confined}
    for candidate, run in tiers.items():
        with contextlib.suppress(SandboxError, OSError):
            if run(["-c", "print(6 * 7)"], b"", limits).stdout == b"42\n":
                return candidate
    return "none"


def run_python(
    arguments: Sequence[str],
    *,
    stdin: bytes = b"",
    limits: Limits | None = None,
    min_tier: Literal["A", "B"] = "B",
    unsafe_no_sandbox: bool = False,
) -> Outcome:
    """Runs the interpreter with its standard library only, isolated from everything else. Blocks until it is over.

    Args:
        min_tier: A insists on namespaces.
        unsafe_no_sandbox: run with resource limits alone where no isolation works; so does BRAID_ALLOW_NO_SANDBOX=1.

    Raises:
        SandboxError: no isolation works here and running without was not allowed, or the set-up failed.
    """
    limits = limits or Limits()
    found = tier()
    if found == "A":
        return _run_in_namespaces(arguments, stdin, limits)
    if found == "B" and min_tier == "B":
        return _run_confined(arguments, stdin, limits)
    if not is_skipping_allowed(unsafe_no_sandbox):
        what = "no sandbox works" if found == "none" else f"only sandbox tier {found} works"
        raise SandboxError(
            f"{what} on this machine, so model-written code is refused. Install bubblewrap and util-linux and "
            "allow unprivileged user namespaces (tier A), or run a kernel with Landlock (tier B), or set "
            f"unsafe_no_sandbox (or {ALLOW_NONE_VARIABLE}=1) on a machine that holds nothing worth taking."
        )
    command = [*_limited(limits), sys.executable, "-I", *arguments]
    with _started(command, limits, env={}, cwd=WORK_FOLDER, start_new_session=True) as process:
        outcome = _converse(process, stdin, limits, lambda: _kill_group(process), tier="none", warning=WARNING)
        _kill_group(process)
    return outcome


def is_skipping_allowed(unsafe_no_sandbox: bool = False) -> bool:
    """Whether model-written programs may run where nothing isolates them."""
    return unsafe_no_sandbox or os.environ.get(ALLOW_NONE_VARIABLE) == "1"


def _run_in_namespaces(arguments: Sequence[str], stdin: bytes, limits: Limits) -> Outcome:
    if shutil.which("bwrap") is None:
        raise SandboxError("bubblewrap is not installed")
    status_reader, status_writer = os.pipe()
    filter_reader = _filter_descriptor()
    with open(status_reader, "rb") as status:
        try:
            command = _isolating_command(arguments, limits, status_writer, filter_reader)
            passed = tuple(fd for fd in (status_writer, filter_reader) if fd is not None)
            running = _started(command, limits, env={"PATH": "/usr/bin:/bin"}, cwd="/", pass_fds=passed)
            with running as process:
                os.close(status_writer)
                status_writer = None
                outcome = _converse(process, stdin, limits, lambda: _kill_bubblewrap(process), tier="A")
        finally:
            for descriptor in (status_writer, filter_reader):
                if descriptor is not None:
                    os.close(descriptor)
        # written by bubblewrap alone: the program cannot reach this descriptor, so it cannot pretend it never ran
        report = [json.loads(line) for line in status.read().splitlines() if line.strip()]
    if outcome.fate == "exited" and not any("exit-code" in line for line in report):
        raise SandboxError(f"bubblewrap did not start the program: {outcome.stderr[:500].decode(errors='replace')}")
    return outcome


def _filter_descriptor() -> int | None:
    """An open file bubblewrap reads the system-call filter from; None where nobody knows this machine's calls."""
    if not sandbox_filter.is_supported():
        return None
    descriptor = os.memfd_create("filter")
    os.write(descriptor, sandbox_filter.program())
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _run_confined(arguments: Sequence[str], stdin: bytes, limits: Limits) -> Outcome:
    status_reader, status_writer = os.pipe()
    with open(status_reader, "rb") as status:
        try:
            confine = [sys.executable, "-P", "-m", "rewards.sandbox_confine", str(status_writer)]
            command = [*_limited(limits), *confine, _interpreter(), "-I", *arguments]
            env = {"PYTHONPATH": PACKAGE_FOLDER}
            running = _started(command, limits, env=env, cwd="/", pass_fds=(status_writer,), start_new_session=True)
            with running as process:
                os.close(status_writer)
                status_writer = None
                outcome = _converse(process, stdin, limits, process.kill, tier="B")
        finally:
            if status_writer is not None:
                os.close(status_writer)
        if not status.read():  # closed when the program begins, so that it cannot pretend
            raise SandboxError(f"the program could not be confined: {outcome.stderr[-500:].decode(errors='replace')}")
    return outcome


@contextlib.contextmanager
def _started(command: list[str], limits: Limits, **settings: Any) -> Iterator[subprocess.Popen[Any]]:
    """The process, in a control group of its own where one was delegated; reaped at the end."""
    folder = sandbox_cgroup.delegated()
    with contextlib.ExitStack() as stack:
        try:
            if folder is not None:
                cgroup = sandbox_cgroup.Cgroup(folder, memory_mb=limits.memory_mb, num_processes=limits.num_processes)
                command = stack.enter_context(cgroup).joining(command)
            process = stack.enter_context(subprocess.Popen(command, **settings, **_pipes()))
        except OSError as error:
            raise SandboxError(f"the sandbox cannot be started: {error}") from error
        yield process


def _isolating_command(
    arguments: Sequence[str], limits: Limits, status_descriptor: int, filter_descriptor: int | None
) -> list[str]:
    prefix, is_root = os.path.realpath(sys.base_prefix), os.geteuid() == 0
    command = _as_nobody(prefix) if is_root else []
    command += ["bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"]
    command += ["--cap-drop", "ALL", "--clearenv", "--hostname", "sandbox", "--json-status-fd", str(status_descriptor)]
    if filter_descriptor is not None:
        command += ["--seccomp", str(filter_descriptor)]
    for folder in SYSTEM_FOLDERS:
        if os.path.islink(folder):
            command += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            command += ["--ro-bind", folder, folder]
    if is_root or not prefix.startswith("/usr"):
        command += ["--ro-bind", INTERPRETER_FOLDER if is_root else prefix, prefix]
    command += ["--proc", "/proc", "--dev", "/dev", "--size", str(limits.disk_mb << 20), "--tmpfs", WORK_FOLDER]
    command += ["--remount-ro", "/", "--remount-ro", "/dev", "--chdir", WORK_FOLDER, "--", *_limited(limits)]
    return [*command, _interpreter(), "-I", *arguments]


def _interpreter() -> str:
    return f"{os.path.realpath(sys.base_prefix)}/bin/python{sys.version_info.major}.{sys.version_info.minor}"


def _limited(limits: Limits) -> list[str]:
    """Hard limits equal to the soft ones: the program cannot raise them again."""
    values = {
        "cpu": limits.cpu_s,
        "as": limits.memory_mb << 20,
        "nproc": limits.num_processes,
        "fsize": limits.file_mb << 20,
        "nofile": 64,
        "core": 0,
    }
    return [shutil.which("prlimit") or "prlimit", *(f"--{name}={value}:{value}" for name, value in values.items())]


def _as_nobody(prefix: str) -> list[str]:
    """Gives up root before anything else; the interpreter's folder is made reachable first."""
    command = ["bwrap", "--die-with-parent", "--dev-bind", "/", "/", "--ro-bind", prefix, INTERPRETER_FOLDER, "--"]
    command += ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]
    return [*command, "--"]


def _kill_bubblewrap(process: subprocess.Popen[Any]) -> None:
    """Kills the inner bubblewrap first, where there are two: changing the user made it forget to die with its parent.

    The rest are in its PID namespace and go with it.
    """
    with contextlib.suppress(OSError), open(f"/proc/{process.pid}/task/{process.pid}/children") as children:
        for child in children.read().split():
            os.kill(int(child), 9)
    process.kill()


def _pipes() -> dict[str, Any]:
    return {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


def _kill_group(process: subprocess.Popen[Any]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)


def _converse(
    process: subprocess.Popen[Any],
    stdin: bytes,
    limits: Limits,
    kill: Callable[[], None],
    *,
    tier: Tier,
    warning: str | None = None,
) -> Outcome:
    """Feeds the program and drains both streams at once, up to their limits.

    It is over when the main process is: whoever else holds the pipes open is not waited for.
    """
    start = time.monotonic()
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    outputs: dict[IO[bytes], bytearray] = {process.stdout: bytearray(), process.stderr: bytearray()}
    fate: Literal["exited", "timeout", "output"] = "exited"
    with selectors.DefaultSelector() as selector:
        for stream in outputs:
            os.set_blocking(stream.fileno(), False)
            selector.register(stream, selectors.EVENT_READ)
        os.set_blocking(process.stdin.fileno(), False)
        selector.register(process.stdin, selectors.EVENT_WRITE)
        pending = memoryview(stdin)
        while True:
            is_over = process.poll() is not None
            for key, _ in selector.select(0.0 if is_over else 0.05):
                if key.fileobj is process.stdin:
                    pending = _feed(selector, process.stdin, pending)
                else:
                    _drain(selector, key.fileobj, outputs, limits.max_output)
            if any(len(output) > limits.max_output for output in outputs.values()):
                fate = "output"
                break
            if is_over:
                break
            if time.monotonic() - start > limits.wall_s:
                fate = "timeout"
                break
    if fate != "exited":
        kill()
    code = process.wait()
    return Outcome(
        fate=fate,
        exit_code=(128 - code if code < 0 else code) if fate == "exited" else None,
        stdout=bytes(outputs[process.stdout][: limits.max_output]),
        stderr=bytes(outputs[process.stderr][: limits.max_output]),
        seconds=time.monotonic() - start,
        tier=tier,
        warning=warning,
    )


def _feed(selector: selectors.BaseSelector, stream: IO[bytes], pending: memoryview) -> memoryview:
    try:
        pending = pending[os.write(stream.fileno(), pending[: 1 << 16]) :] if pending else pending
    except BlockingIOError:
        return pending
    except BrokenPipeError:
        pending = pending[:0]
    if not pending:
        selector.unregister(stream)
        with contextlib.suppress(BrokenPipeError):
            stream.close()
    return pending


def _drain(selector: selectors.BaseSelector, stream: Any, outputs: dict[IO[bytes], bytearray], limit: int) -> None:
    """Reads what is there now, at most a little over the limit."""
    while len(outputs[stream]) <= limit:
        try:
            piece = os.read(stream.fileno(), 1 << 16)
        except BlockingIOError:
            return
        if not piece:
            selector.unregister(stream)
            return
        outputs[stream] += piece
