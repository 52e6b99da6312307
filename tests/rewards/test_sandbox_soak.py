"""Hostile programs in a row leave no process, file or memory behind."""

import os
import resource
import tempfile
from pathlib import Path

import pytest

from tests.rewards import hostile
from tests.rewards.sandboxed import HIDDEN_TESTS, assert_gone, judge, needs_sandbox


def footprint():
    """What a program may leave behind: processes, files, open descriptors, memory of this process in MB."""
    folders = [Path(tempfile.gettempdir()), Path("/dev/shm"), Path("/tmp")]
    files = {str(path) for folder in folders if folder.is_dir() for path in folder.iterdir()}
    descriptors = len(os.listdir("/proc/self/fd"))
    return files, descriptors, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def soak(count):
    """Runs the hostile programs in turn; returns the statuses that came back, after checking what is left."""
    programs = list(hostile.PROGRAMS.items())
    judge("def add(a, b): return a + b")
    files, descriptors, memory = footprint()
    statuses = {}
    for index in range(count):
        name, source = programs[index % len(programs)]
        limits = {"wall_s": 0.6, "cpu_s": 1, "memory_mb": 256, "disk_mb": 8, "num_processes": 16}
        verdict = judge(source, HIDDEN_TESTS, limits=limits, score="fraction")
        assert verdict.score == 0.0, (name, verdict)
        statuses[name] = verdict.status.value
    assert judge("def add(a, b): return a + b").score == 1.0
    assert_gone(hostile.NAME)
    files_after, descriptors_after, memory_after = footprint()
    own = {path for path in files_after - files if "pytest" not in path}
    assert not [path for path in own if Path(path).name in ("big", "x") or Path(path).name.isdigit()], own
    assert descriptors_after == descriptors
    assert memory_after - memory < 64
    return statuses


@needs_sandbox
def test_hostile_programs_in_a_row_leave_nothing_behind():
    statuses = soak(len(hostile.PROGRAMS))
    assert {"timeout", "crash", "scored", "resource"} <= set(statuses.values())


@needs_sandbox
@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_thousand_hostile_programs_leave_nothing_behind(tier, record_property):
    soak(1000)
    record_property("sandbox_tier", tier)
    print(f"1000 hostile programs, sandbox tier {tier}")
