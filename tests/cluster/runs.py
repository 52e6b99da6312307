"""Runs of the whole command in a process of its own, on small parts, for tests that end or kill it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

SIMULATED = (
    "rollout.engine.kind=simulated",
    "rollout.engine.max_model_len=256",
    "rollout.engine.options={tokens_per_s: 200, mean_length: 8}",
    "rollout.group_size=4",
    "rollout.concurrent_groups=4",
    "replay.groups_per_update=4",
    "tasks.num_train=64",
    "tasks.num_heldout=8",
    "evaluation.at_end=false",
    "layout=null",
    "tracking.sinks=[]",
)
"""Simulated engines, the real learner on the tiny model, everything else as always."""


class Run:
    """One `braid train`, and all processes it has started."""

    def __init__(
        self, runs: Path, name: str, *arguments: str, settings: Sequence[str] = SIMULATED, recipe: str = "grpo"
    ) -> None:
        self.folder = runs / name
        changes = [part for setting in settings for part in ("--set", setting)]
        new = [recipe, "--name", name, *changes] if "--resume" not in arguments else []
        command = [
            sys.executable,
            "-m",
            "orchestrator.cli",
            "train",
            *new,
            "--runs",
            str(runs),
            "--no-view",
            *arguments,
        ]
        runs.mkdir(parents=True, exist_ok=True)
        self._log = runs / f"{name}.log"
        with self._log.open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait(self, timeout_s: float = 900.0) -> int:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill_everything()
            raise AssertionError(f"the run did not end in {timeout_s:g} s:\n{self.log[-4000:]}") from None

    def wait_for_step(self, step: int, timeout_s: float = 900.0) -> None:
        """Until the learner has reported this many committed steps."""
        deadline = time.monotonic() + timeout_s
        while self.step() < step:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill_everything()
                raise AssertionError(f"step {step} was not reached, only {self.step()}:\n{self.log[-4000:]}")
            time.sleep(0.2)

    def step(self) -> int:
        steps = [
            line["step"] for line in self.lines("metrics.jsonl") if line.get("role") == "learner" and "loss" in line
        ]
        return int(max(steps, default=0))

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Whole lines of one of the run's JSONL files."""
        path = self.folder / name
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def wait_for_events(self, kind: str, count: int, timeout_s: float = 900.0) -> None:
        """Until this many events of a kind have been told."""
        deadline = time.monotonic() + timeout_s
        while (seen := sum(line["kind"] == kind for line in self.lines("events.jsonl"))) < count:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill_everything()
                raise AssertionError(f"{seen} of {count} {kind}:\n{self.log[-4000:]}")
            time.sleep(0.2)

    def pid_of(self, box: str) -> int:
        """The process a box runs in, as the newest event tells."""
        pids: dict[str, int] = {}
        for line in self.lines("events.jsonl"):
            match line["kind"]:
                case "box_runs" | "box_restarted":
                    pids[line["box"]] = line["pid"]
                case "engine_started":
                    pids[line["worker"]] = line["pid"]
                case "learner_runs":
                    pids |= line["pids"]
        return pids[box]

    def kill(self, box: str) -> int:
        """SIGKILL of the process of one box; its id."""
        pid = self.pid_of(box)
        os.kill(pid, signal.SIGKILL)
        return pid

    def scale(self, size: str, code: int = 0) -> str:
        """What `braid scale` says, from another process."""
        command = [sys.executable, "-m", "orchestrator.cli", "scale", str(self.folder), size]
        asked = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert asked.returncode == code, asked.stdout + asked.stderr
        return asked.stdout + asked.stderr

    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def processes(self) -> list[psutil.Process]:
        """The command, its Ray daemons, workers and engines: all of its session, wherever their parents went."""
        session = self.process.pid
        mine = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == session or session in (parent.pid for parent in process.parents()):
                    mine.append(process)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        return mine

    def kill_everything(self) -> None:
        """kill -9 of the whole run at one moment."""
        everything = self.processes()
        for process in everything:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(everything, timeout=20)
        self.process.wait(20)


def wait_until_gone(processes: Sequence[psutil.Process], timeout_s: float = 20.0) -> list[psutil.Process]:
    """Those that are still alive after the time."""
    return psutil.wait_procs(list(processes), timeout=timeout_s)[1]
