"""How a learner process on a CPU treats memory it frees and needs again a second later."""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""Parameters of glibc's `mallopt`."""


def keep_freed_memory() -> bool:
    """Lets this process keep what it frees, so that a training step does not fault all its pages in again.

    Activations and gradients are freed and allocated anew in every step; by default glibc hands large blocks back to
    the kernel, which clears each page again. Call it once, early, in a process that trains and does little else: its
    memory stays at the peak. One arena, because trainers run in a thread and other arenas cannot grow large.

    Returns:
        Whether it took effect; False outside Linux with glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_ARENA_MAX, 1))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
