"""RunRecorder: every number and event of a run arrives here; files, sinks, live status and summary leave."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter, deque
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from orchestrator.evaluation import Accuracy, Evaluation
from orchestrator.run_log import (
    EVALUATIONS_FILE,
    EVENTS_FILE,
    RESUMED,
    STATUS_FILE,
    LineFile,
    read,
    surviving,
    write_json,
)
from orchestrator.run_totals import LEARNER, RunTotals
from orchestrator.tracking import Tracker
from rewards.telemetry import describe, unknown_metrics

WORKER_PERIOD_S = 5.0
"""Polled numbers of one worker go to the sinks at most this often; the live status has them all."""

SUMMARY_PERIOD_S = 10.0
"""How old summary.json may be while the run goes on."""

SAVE_PERIOD_S = 1.0
"""What a crash may cost of the workers' counts; the learner's steps are saved one by one."""

NUM_RECENT = 64
"""Steps whose reward and duration the live status carries."""

STATE_FILE = "state/recorder.json"

logger = logging.getLogger(__name__)


class RunRecorder:
    """Implements ReportPort. Consumes reports; produces metrics.jsonl, events.jsonl, evaluations.jsonl, status.json and
    summary.json.

    Never on the data path: a slow sink delays nobody. In the folder of a run that was started before, it goes on
    where that one's files end.
    """

    def __init__(self, run_dir: Path, tracker: Tracker, *, num_steps: int, strict: bool = False) -> None:
        """
        Args:
            strict: refuse a metric that has no row in the telemetry table; otherwise count it and warn once.
        """
        self._run_dir, self._tracker, self._num_steps, self._strict = run_dir, tracker, num_steps, strict
        self._events = LineFile(run_dir / EVENTS_FILE)
        self._evaluation_lines = LineFile(run_dir / EVALUATIONS_FILE)
        self._latest: dict[str, float] = {}
        self._workers: dict[str, dict[str, float]] = {}
        self._written_at: dict[str, float] = {}
        self._states: dict[str, str] = {}
        self._waits: dict[str, str] = {}
        self._unknown: Counter[str] = Counter()
        self._warnings: list[str] = []
        self._num_told = 0
        self._rewards: deque[float] = deque(maxlen=NUM_RECENT)
        self._step_walls: deque[tuple[int, float]] = deque(maxlen=NUM_RECENT)
        self._phase = "starting"
        self._began_at: float | None = None
        self._ended_at: float | None = None
        self._summary_at = self._saved_at = 0.0
        self._totals = RunTotals()
        self._evaluations: list[Evaluation] = []
        self._best: dict[str, Any] = {}
        """The evaluation whose weights lie in the folder of the best model."""
        self._restore()
        self._totals.starts += 1
        self._event("started", {"start": self._totals.starts, "step": self.step})

    # -- ReportPort ---------------------------------------------------------------------------------------------

    async def report(self, role: str, values: Mapping[str, float], *, step: int | None = None) -> None:
        self._check_known(values)
        if role == LEARNER:
            self._learner_reported(values, step)
        else:
            self._totals.add(role, values, is_training=self._is_training)
            self._workers[role] = dict(values)
            now = time.monotonic()
            if now - self._written_at.get(role, -WORKER_PERIOD_S) >= WORKER_PERIOD_S:
                self._written_at[role] = now
                self._tracker.write(role, values, step=self.step if step is None else step)
        self._tell_warnings()
        if time.monotonic() - self._saved_at >= SAVE_PERIOD_S:
            self._save()
        if time.monotonic() - self._summary_at >= SUMMARY_PERIOD_S:
            self.write_summary()

    async def event(self, kind: str, details: Mapping[str, Any]) -> None:
        if kind == "activated":
            for name, value in details.items():
                if (name.endswith("_s") or name.startswith("probe_")) and value is not None:
                    self._totals.activations[name].add(float(value))
        elif kind == "best_kept":
            self._best = dict(details)
        self._event(kind, details)

    # -- what the conductor tells -------------------------------------------------------------------------------

    def phase(self, name: str) -> None:
        """starting, evaluating, training, finishing, done, stopped, failed."""
        self._phase = name

    def training_began(self) -> None:
        """Call after the workers' numbers were collected: what they did before is not counted as training."""
        self._phase, self._began_at = "training", time.monotonic()

    def training_ended(self) -> None:
        """Call after the workers' numbers were collected for the last time."""
        self._ended_at = time.monotonic()

    def counted_already(self, role: str, values: Mapping[str, float]) -> None:
        """A reporter goes on from these counts, which an earlier start of this recorder has added up."""
        self._totals.known(role, values)

    def worker_state(self, name: str, state: str) -> None:
        self._states[name] = state
        if state == "lost":
            self._totals.replaced(name)

    def waits(self, reasons: Mapping[str, str]) -> None:
        self._waits = dict(reasons)

    def evaluated(self, evaluation: Evaluation) -> None:
        self._evaluations.append(evaluation)
        self._evaluation_lines.append({"time": time.time(), "wall_s": self.wall_s, **evaluation.as_dict()})
        values = {
            f"accuracy/{name}" if name != "all" else "accuracy": a.accuracy for name, a in evaluation.splits.items()
        }
        values |= {"evaluation_s": evaluation.seconds, "wall_s": self.wall_s}
        self._tracker.write("evaluation", values, step=evaluation.step)

    # -- what others read ---------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        return int(self._latest.get("step", 0))

    @property
    def wall_s(self) -> float:
        """Training wall clock so far, over all starts: first ticket to last commit, without evaluations around it."""
        if self._began_at is None:
            return self._totals.wall_s
        return self._totals.wall_s + (self._ended_at or time.monotonic()) - self._began_at

    @property
    def lease_wait_s(self) -> float:
        """Seconds the learner has waited for batches during training."""
        return self._totals.learner("lease_wait_s")

    @property
    def evaluations(self) -> list[Evaluation]:
        return list(self._evaluations)

    def status(self) -> dict[str, Any]:
        """A snapshot for `braid status` and the live view.

        `latest` are the learner's newest numbers, `workers` each worker's, `states` and `waits` texts by name,
        `rewards` the means of the last steps, `eta_s` None while nothing is known.
        """
        return {
            "phase": self._phase,
            "step": self.step,
            "num_steps": self._num_steps,
            "wall_s": self.wall_s,
            "eta_s": self._eta_s(),
            "latest": dict(self._latest),
            "rewards": list(self._rewards),
            "workers": {name: dict(values) for name, values in self._workers.items()},
            "states": dict(self._states),
            "waits": dict(self._waits),
            "tokens_per_s": self._totals.tokens_per_s(self.wall_s),
            "age_violations": self._age_violations(),
            "evaluations": [e.as_dict() for e in self._evaluations],
            "warnings": list(self._warnings),
        }

    def write_summary(self, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """summary.json: what the final table and the report are made from."""
        self._summary_at = time.monotonic()
        evaluations = [e.as_dict() for e in self._evaluations]
        has_start = bool(self._evaluations) and self._evaluations[0].step == 0
        has_later = bool(self._evaluations) and self._evaluations[-1].step > 0
        totals = self._totals
        summary = {
            "phase": self._phase,
            "step": self.step,
            "num_steps": self._num_steps,
            "wall_s": self.wall_s,
            "starts": totals.starts,
            "redone_steps": totals.redone_steps,
            "before": evaluations[0]["splits"] if has_start else {},
            "after": evaluations[-1]["splits"] if has_later else {},
            "best": self._best,
            "tokens_per_s": totals.tokens_per_s(self.wall_s),
            "time_s": totals.time_s(self.wall_s),
            "age_histogram": {str(age): count for age, count in sorted(totals.ages.items())},
            "age_violations": self._age_violations(),
            "activations": {name: spread.as_dict() for name, spread in totals.activations.items()},
            "verdicts": totals.by_name("status/"),
            "drops": self._drops(),
            "counts": self._counts(),
            "workers": self._workers,
            "unknown_metrics": dict(self._unknown),
            "warnings": list(self._warnings),
            **(extra or {}),
        }
        write_json(self._run_dir / "summary.json", summary, indent=2)
        self._write_status()  # after the summary: who reads there of the end finds the last numbers
        return summary

    def close(self) -> None:
        """Writes the newest numbers of all workers and ends the sinks."""
        for role, values in self._workers.items():
            self._tracker.write(role, values, step=self.step)
        self._tracker.close()
        self._tell_warnings()
        self._save()
        self._events.close()
        self._evaluation_lines.close()

    # -- learner ------------------------------------------------------------------------------------------------

    def _learner_reported(self, values: Mapping[str, float], step: int | None) -> None:
        if step is not None and step < self.step:
            self._went_back(step)
        self._totals.add(LEARNER, values, is_training=self._is_training)
        self._latest.update(values)
        if "step" in values:
            self._step_walls.append((self.step, self.wall_s))
            if "reward_mean" in values:
                self._rewards.append(values["reward_mean"])
        self._tracker.write(LEARNER, {**values, "wall_s": self.wall_s}, step=self.step if step is None else step)
        if "step" in values:
            self._save()

    def _went_back(self, step: int) -> None:
        """Steps of the learner go back only when a run resumes from a checkpoint: later lines are void from here on."""
        self._event("resumed", {"step": step, "redone_steps": self.step - step})
        self._totals.redone_steps += self.step - step
        self._latest["step"] = float(step)
        self._evaluations = [e for e in self._evaluations if e.step <= step]
        self._evaluation_lines.append({"time": time.time(), RESUMED: step})
        self._tracker.write("run", {RESUMED: float(step)}, step=step)
        self._step_walls.clear()

    @property
    def _is_training(self) -> bool:
        return self._began_at is not None and self._ended_at is None

    def _eta_s(self) -> float | None:
        """Seconds to the last step at the usual pace of the recent ones."""
        paces = [(b - a) / (n - m) for (m, a), (n, b) in pairwise(self._step_walls) if n > m]
        return median(paces) * max(0, self._num_steps - self.step) if paces else None

    # -- summary ------------------------------------------------------------------------------------------------

    def _age_violations(self) -> int:
        return int(self._totals.overall.get(LEARNER, {}).get("age_violations", 0.0))

    def _drops(self) -> dict[str, int]:
        """Groups that were not trained, by who dropped them and why."""
        drops = {f"rule: {reason}": count for reason, count in self._totals.by_name("groups_dropped_").items()}
        for name, value in self._workers.get("replay", {}).items():
            if name.startswith("dropped/"):
                drops[f"replay: {name.removeprefix('dropped/').replace('/', ', ')}"] = int(value)
        return drops

    def _counts(self) -> dict[str, int]:
        """Amounts over the whole run, evaluations included, by metric."""
        counts: Counter[str] = Counter()
        for by_name in self._totals.overall.values():
            for name, value in by_name.items():
                if describe(name).unit != "s" and "/" not in name:
                    counts[name] += int(value)
        return dict(sorted(counts.items()))

    # -- files --------------------------------------------------------------------------------------------------

    def _restore(self) -> None:
        """Goes on with the totals and evaluations of earlier starts."""
        path = self._run_dir / STATE_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            return
        state = json.loads(path.read_text())
        self._totals = RunTotals.from_json(state["totals"])
        self._latest = {"step": float(state["step"])}
        self._rewards.extend(state["rewards"])
        self._best = state["best"]
        self._evaluations = [
            _evaluation(line) for line in surviving(read(self._run_dir / EVALUATIONS_FILE)) if "splits" in line
        ]

    def _save(self) -> None:
        totals = {**self._totals.to_json(), "wall_s": self.wall_s}
        state = {"step": self.step, "totals": totals, "rewards": list(self._rewards), "best": self._best}
        write_json(self._run_dir / STATE_FILE, state)
        self._write_status()
        self._saved_at = time.monotonic()

    def _write_status(self) -> None:
        write_json(self._run_dir / STATUS_FILE, {"time": time.time(), **self.status()})

    def _event(self, kind: str, details: Mapping[str, Any]) -> None:
        self._events.append({"time": time.time(), "kind": kind, **details})

    def _check_known(self, values: Mapping[str, float]) -> None:
        for name in unknown_metrics(values):
            if self._strict:
                describe(name)
            if name not in self._unknown:
                self._warnings.append(f"metric {name!r} has no row in rewards.telemetry.METRICS")
            self._unknown[name] += 1

    def _tell_warnings(self) -> None:
        """Warnings become events once."""
        while self._tracker.warnings:  # other threads append to it
            self._warnings.append(self._tracker.warnings.pop(0))
        for warning in self._warnings[self._num_told :]:
            logger.warning(warning)
            self._event("warning", {"text": warning})
        self._num_told = len(self._warnings)


def _evaluation(line: Mapping[str, Any]) -> Evaluation:
    splits = {
        name: Accuracy(**{**values, "accuracy": float("nan") if values["accuracy"] is None else values["accuracy"]})
        for name, values in line["splits"].items()
    }
    return Evaluation(line["step"], line["version"], line["seconds"], splits)
