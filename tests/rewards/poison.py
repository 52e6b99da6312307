"""Verifiers that misbehave, for the tests of rubric and isolation. Imported by children, so they live in a module."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from rewards.task import Task
from rewards.verdict import Status, Verdict


def fair(answer: str, task: Task) -> float:
    return float(answer == task.reference)


def length(answer: str, task: Task) -> int:
    return len(answer)


def numpy_bool(answer: str, task: Task) -> Any:
    return np.bool_(answer == task.reference)


def raises(answer: str, task: Task) -> float:
    raise KeyError("lost column")


def exits_politely(answer: str, task: Task) -> float:
    sys.exit(3)


def not_a_number(answer: str, task: Task) -> float:
    return float("nan")


def infinite(answer: str, task: Task) -> float:
    return float("inf")


def huge_integer(answer: str, task: Task) -> int:
    return 10**400


def text(answer: str, task: Task) -> Any:
    return "1.0"


def nothing(answer: str, task: Task) -> Any:
    return None


def unwritable_extras(answer: str, task: Task) -> Verdict:
    return Verdict.scored(1.0, extras={"object": object()})


def no_answer(answer: str, task: Task) -> Verdict:
    return Verdict.floor(Status.NO_ANSWER)


def invalid_gold(answer: str, task: Task) -> Verdict:
    return Verdict.unscored(Status.INVALID_GOLD)


def judge_error(answer: str, task: Task) -> Verdict:
    return Verdict.unscored(Status.JUDGE_ERROR)


def obeys(answer: str, task: Task, *, folder: str = "") -> float:
    """Does what the answer says; `folder` collects the process ids involved."""
    if folder:
        (Path(folder) / f"{os.getpid()}-{time.monotonic_ns()}").write_text(answer)
    if answer == "hang":
        while True:
            pass
    if answer == "hang in native code":
        sum(pow(3, 10**9, 10 ** (10**6)) for _ in range(10**9))
    if answer == "exit":
        os._exit(0)
    if answer == "eat memory":
        return float(len(bytearray(8 << 30)))
    if answer == "leave a process":
        process = subprocess.Popen(["sleep", "600"])
        (Path(folder) / f"{process.pid}-grandchild").touch()
        while True:
            time.sleep(1)
    if answer == "shout":
        print("x" * 100_000)
    if answer == "sleep":
        time.sleep(0.3)
    return 1.0


def dies_once(answer: str, task: Task, *, marker: str) -> float:
    """Takes its child down the first time, and is fine ever after."""
    if not Path(marker).exists():
        Path(marker).touch()
        os._exit(1)
    return 1.0


def shows_task(answer: str, task: Task) -> Verdict:
    same = {"prompt": task.prompt, "metadata": dict(task.metadata), "tags": dict(task.tags), "answer": answer}
    return Verdict.scored(0.5, extras=same | {"pid": os.getpid()})


def votes(answers: list[str], task: Task) -> list[float]:
    """Share of the group that says the same."""
    return [answers.count(answer) / len(answers) for answer in answers]


def obeys_all(answers: list[str], task: Task) -> Any:
    if "hang" in answers:
        time.sleep(600)
    return [1.0] * (len(answers) - ("forget one" in answers))


def slow_once(answer: str, task: Task, *, marker: str) -> float:
    """Hangs the first time it is called, and answers at once ever after."""
    if not Path(marker).exists():
        Path(marker).touch()
        time.sleep(600)
    return 1.0
