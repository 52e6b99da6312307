"""Holds all processes of one program in a control group, where someone delegated a folder of them to this service.

Without it memory is limited per process; with it for all of a program's processes together.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from pathlib import Path

FOLDER_VARIABLE = "BRAID_SANDBOX_CGROUP"
"""Names a folder of cgroup version 2 that this user may write to and that holds no process itself."""
EXTRA_PROCESSES = 4
"""Of the sandbox itself."""
REMOVE_TIMEOUT_S = 5.0

_order = itertools.count()


class CgroupError(OSError):
    """The delegated folder cannot be used."""


def delegated() -> Path | None:
    """The folder the environment names; None when it names none."""
    name = os.environ.get(FOLDER_VARIABLE)
    return Path(name) if name else None


class Cgroup:
    """A control group for one program; leaving the context kills what is left in it and removes it.

    Raises:
        CgroupError: the folder cannot hold one.
    """

    def __init__(self, folder: Path, *, memory_mb: int, num_processes: int) -> None:
        self._path = folder / f"braid-{os.getpid()}-{next(_order)}"
        self._limits = {
            "memory.max": memory_mb << 20,
            "memory.swap.max": 0,
            "pids.max": num_processes + EXTRA_PROCESSES,
        }

    def __enter__(self) -> Cgroup:
        try:
            self._path.mkdir()
            for name, value in self._limits.items():
                if (self._path / name).exists():  # its controller is there
                    (self._path / name).write_text(str(value))
        except OSError as error:
            raise CgroupError(
                f"{FOLDER_VARIABLE}={self._path.parent} holds no control group for a program: {error}. Delegate a "
                "folder of cgroup version 2 with the controllers memory and pids, or unset the variable."
            ) from error
        return self

    def joining(self, command: list[str]) -> list[str]:
        """The command, which first puts itself into the group."""
        return ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self._path / "cgroup.procs"), *command]

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            (self._path / "cgroup.kill").write_text("1")
        deadline = time.monotonic() + REMOVE_TIMEOUT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                self._path.rmdir()
                return
            time.sleep(0.01)  # killed processes leave the group a moment later
