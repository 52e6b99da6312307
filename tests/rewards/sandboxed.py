"""What the tests of sandbox and code verifier share: programs judged and run with limits a busy machine keeps."""

import os
import subprocess
import time

import pytest

from rewards import sandbox
from rewards.task import Task
from rewards.verifiers.code import code

ROOMY = {"wall_s": 20.0}
TESTS = {"entry_point": "add", "cases": [{"args": [1, 2], "expected": 3}, {"args": [5, 5], "expected": 10}]}
HIDDEN_TESTS = {"entry_point": "add", "cases": [{"args": [17, 25], "expected": 42}, {"args": [-3, 8], "expected": 5}]}
ECHO = {"cases": [{"stdin": "3\n", "stdout": "6\n"}, {"stdin": "4\n", "stdout": "8"}]}

needs_sandbox = pytest.mark.skipif(
    sandbox.tier() == "none" and os.environ.get(sandbox.ALLOW_NONE_VARIABLE) == "1",
    reason="no sandbox works here and BRAID_ALLOW_NO_SANDBOX=1 allows skipping",
)


def judge(source, tests=TESTS, limits=ROOMY, **options):
    task = Task(task_id="t", prompt="p", metadata={"tests": tests} if tests else {})
    return code(f"```python\n{source}\n```", task, limits=limits, **options)


def run(source, **limits):
    return sandbox.run_python(["-c", source], limits=sandbox.Limits(**(ROOMY | limits)))


def assert_gone(name):
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        if not any(line.startswith(name) for line in listing.splitlines()):
            return
        time.sleep(0.1)
    raise AssertionError(f"{name} is still running")
