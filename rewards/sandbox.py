"""Runs one program of unknown intent and brings back what it said: no network, no files, no time beyond its limits.

Isolation is bubblewrap's: new user, mount, PID, network, IPC and UTS namespaces, a sized temporary root with the
interpreter read-only, no capabilities, no nested user namespaces, an empty environment. What the program should
have said never enters; the caller compares outside.
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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal

ALLOW_NONE_VARIABLE = "BRAID_ALLOW_NO_SANDBOX"
NOBODY = 65534
"""A user with no rights; programs of a root service run as this one, as process limits do not bind root."""
WORK_FOLDER = "/tmp"
INTERPRETER_FOLDER = "/mnt"
"""Where NOBODY finds the interpreter, which may live in the home of root."""
SYSTEM_FOLDERS = ("/usr", "/lib", "/lib64", "/bin")
WARNING = "ran without isolation: any file, secret and socket of this machine was within its reach"


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
        warning: set when nothing isolated it.
    """

    fate: Literal["exited", "timeout", "output"]
    exit_code: int | None
    stdout: bytes
    stderr: bytes
    seconds: float
    warning: str | None = None


@functools.cache
def tier() -> Literal["A", "none"]:
    """`A` where bubblewrap works on this machine, found out by running it once; else `none`."""
    if sys.platform != "linux" or shutil.which("bwrap") is None or shutil.which("prlimit") is None:
        return "none"
    try:
        outcome = _run_isolated(["-c", "print(6 * 7)"], b"", Limits(wall_s=20.0))
    except (SandboxError, OSError):
        return "none"
    return "A" if outcome.stdout == b"42\n" else "none"


def run_python(
    arguments: Sequence[str], *, stdin: bytes = b"", limits: Limits | None = None, unsafe_no_sandbox: bool = False
) -> Outcome:
    """Runs the interpreter with its standard library only, isolated from everything else. Blocks until it is over.

    Args:
        unsafe_no_sandbox: run with resource limits alone where no isolation works; so does BRAID_ALLOW_NO_SANDBOX=1.

    Raises:
        SandboxError: no isolation works here and running without was not allowed, or the set-up failed.
    """
    limits = limits or Limits()
    if tier() == "A":
        return _run_isolated(arguments, stdin, limits)
    if not (unsafe_no_sandbox or os.environ.get(ALLOW_NONE_VARIABLE) == "1"):
        raise SandboxError(
            "no sandbox works on this machine, so model-written code is refused. Install bubblewrap and util-linux and "
            f"allow unprivileged user namespaces, or set unsafe_no_sandbox (or {ALLOW_NONE_VARIABLE}=1) on a machine "
            "that holds nothing worth taking."
        )
    command = [*_limited(limits), sys.executable, "-I", *arguments]
    with subprocess.Popen(command, env={}, cwd=WORK_FOLDER, start_new_session=True, **_pipes()) as process:
        outcome = _converse(process, stdin, limits, lambda: _kill_group(process), warning=WARNING)
        _kill_group(process)
    return outcome


def _run_isolated(arguments: Sequence[str], stdin: bytes, limits: Limits) -> Outcome:
    status_reader, status_writer = os.pipe()
    with open(status_reader, "rb") as status:
        try:
            process = subprocess.Popen(
                _isolating_command(arguments, limits, status_writer),
                env={"PATH": "/usr/bin:/bin"},
                cwd="/",
                pass_fds=(status_writer,),
                **_pipes(),
            )
        except OSError as error:
            raise SandboxError(f"bubblewrap cannot be started: {error}") from error
        finally:
            os.close(status_writer)
        with process:
            outcome = _converse(process, stdin, limits, lambda: _kill_bubblewrap(process))
        # written by bubblewrap alone: the program cannot reach this descriptor, so it cannot pretend it never ran
        report = [json.loads(line) for line in status.read().splitlines() if line.strip()]
    if outcome.fate == "exited" and not any("exit-code" in line for line in report):
        raise SandboxError(f"bubblewrap did not start the program: {outcome.stderr[:500].decode(errors='replace')}")
    return outcome


def _isolating_command(arguments: Sequence[str], limits: Limits, status_descriptor: int) -> list[str]:
    prefix, is_root = os.path.realpath(sys.base_prefix), os.geteuid() == 0
    command = _as_nobody(prefix) if is_root else []
    command += ["bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"]
    command += ["--cap-drop", "ALL", "--clearenv", "--hostname", "sandbox", "--json-status-fd", str(status_descriptor)]
    for folder in SYSTEM_FOLDERS:
        if os.path.islink(folder):
            command += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            command += ["--ro-bind", folder, folder]
    if is_root or not prefix.startswith("/usr"):
        command += ["--ro-bind", INTERPRETER_FOLDER if is_root else prefix, prefix]
    command += ["--proc", "/proc", "--dev", "/dev", "--size", str(limits.disk_mb << 20), "--tmpfs", WORK_FOLDER]
    command += ["--remount-ro", "/", "--remount-ro", "/dev", "--chdir", WORK_FOLDER, "--", *_limited(limits)]
    return [*command, f"{prefix}/bin/python{sys.version_info.major}.{sys.version_info.minor}", "-I", *arguments]


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
    process: subprocess.Popen[Any], stdin: bytes, limits: Limits, kill: Any, *, warning: str | None = None
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
