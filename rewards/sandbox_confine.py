"""Confines its own process by Landlock and a system-call filter, then becomes the program: the tier without namespaces.

Run as `python -P -m rewards.sandbox_confine FD PROGRAM ARGUMENTS...`; a byte on FD says that the program begins. What
it may do: read the folders of the interpreter and of the system's libraries, compute, start threads, use its three
streams. It writes no file, opens no socket, starts no process and signals none, so killing the one process ends all.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
import sys

from rewards import sandbox_filter

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""System calls of Landlock, the same on every machine."""
SECCOMP = {"x86_64": 317, "aarch64": 277}
RULESET_VERSION, PATH_BENEATH, SET_FILTER_MODE = 1, 1, 1
FILE_RIGHTS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 5: 0xFFFF}
"""All rights over files that a version of Landlock knows, from the version that brought them."""
EXECUTE, WRITE_FILE, READ_FILE, READ_DIRECTORY = 1, 2, 4, 8
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 24, 4, 38
LAST_CAPABILITY = 63
DEVICES = {"/dev/null": READ_FILE | WRITE_FILE, "/dev/zero": READ_FILE, "/dev/urandom": READ_FILE}
SYSTEM_FOLDERS = ("/usr", "/lib", "/lib64", "/bin")

_libc = ctypes.CDLL(None, use_errno=True)


def landlock_version() -> int:
    """Version of the kernel's Landlock; 0 where there is none."""
    return max(_libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), RULESET_VERSION), 0)


def main(status_descriptor: int, command: list[str]) -> None:
    """Gives up everything, for this process and whatever it becomes.

    Raises:
        OSError: the kernel refused one of the steps; nothing of the program has run.
    """
    parent = os.getppid()
    _call("prctl", _libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0))
    if os.getppid() != parent:
        os._exit(1)
    if os.geteuid() == 0:  # root keeps its number, for the folder of its interpreter, and no power beyond it
        for capability in range(LAST_CAPABILITY + 1):
            _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    _call("prctl", _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _restrict_files()
    _filter_calls()
    os.write(status_descriptor, b"1")
    os.set_inheritable(status_descriptor, False)
    os.execve(command[0], command, {})


def _restrict_files() -> None:
    version = landlock_version()
    if version == 0:
        raise OSError("the kernel has no Landlock")
    rights = max(value for since, value in FILE_RIGHTS.items() if since <= version)
    attributes = struct.pack("Q", rights)
    ruleset = _call("landlock_create_ruleset", _libc.syscall(CREATE_RULESET, attributes, ctypes.c_size_t(8), 0))
    folders = [os.path.realpath(sys.base_prefix), *SYSTEM_FOLDERS]
    allowed = dict.fromkeys(folders, EXECUTE | READ_FILE | READ_DIRECTORY) | DEVICES
    for path, access in allowed.items():
        if not os.path.exists(path):
            continue
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", access, descriptor)
        _call("landlock_add_rule", _libc.syscall(ADD_RULE, ruleset, PATH_BENEATH, rule, 0))
        os.close(descriptor)
    _call("landlock_restrict_self", _libc.syscall(RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _filter_calls() -> None:
    code = sandbox_filter.program(only_process=os.getpid())
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    _call("seccomp", _libc.syscall(SECCOMP[platform.machine()], SET_FILTER_MODE, 0, header))


def _call(name: str, result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
