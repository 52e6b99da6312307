"""The course of one run as a Chrome trace, for ui.perfetto.dev: who did what when, from the run's own records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.run_log import EVALUATIONS_FILE, EVENTS_FILE, METRICS_FILE, RESUMED, read
from orchestrator.run_totals import LEARNER
from orchestrator.summary import NoSummaryError

PHASES = ("plan", "collate", "forward", "backward", "optimizer")
"""Phases of an optimizer step in the order they first begin; the passes of its micro-batches take turns."""

ACTIVATION = ("freeze_s", "load_s", "reset_s", "probe_s")
"""What an engine does within its pause for new weights, in order."""

COUNTERS = {
    LEARNER: ("loss", "reward_mean", "policy_age_mean", "policy_age_max"),
    "replay": ("tickets_outstanding", "waiting_for_ticket", "held_bytes", "groups/ready/live"),
    "tasks": ("tasks_leased", "tasks_waiting"),
    "rollout": ("running", "waiting", "groups_stored"),
    "reward": ("samples", "unscored_fraction"),
}
"""Numbers shown as curves, by role; workers of one role share a row."""


@dataclass(slots=True)
class _Track:
    """One row of slices; none begins before the one in front of it has ended, as a trace viewer requires."""

    process: int
    thread: int
    ended: float = 0.0


@dataclass(slots=True)
class Timeline:
    """Collects trace events. Times are seconds since `began`, which is 0 in the trace.

    Slices end at the moment they were reported and begin as much earlier as they are long; where clocks of two
    processes disagree by more than the gap between two slices, the later one is shortened.
    """

    began: float
    events: list[dict[str, Any]] = field(default_factory=list)
    _processes: dict[str, int] = field(default_factory=dict)
    _tracks: dict[tuple[str, str], _Track] = field(default_factory=dict)

    def slice(
        self, role: str, row: str, name: str, end: float, seconds: float, details: Mapping[str, Any] | None = None
    ) -> tuple[float, float]:
        """One block that ended at `end`; returns its begin and end as drawn."""
        track = self._track(role, row)
        start, end = max(end - seconds, track.ended), max(end, track.ended)
        track.ended = end
        self._add("X", track, name, start, dur=_micros(end) - _micros(start), args=dict(details or {}))
        return start, end

    def parts(self, role: str, row: str, start: float, end: float, parts: Iterable[tuple[str, float]]) -> None:
        """Blocks one behind the other from `start` on, none beyond `end`."""
        for name, seconds in parts:
            start = min(start + seconds, end)
            self.slice(role, row, name, start, seconds)

    def moment(self, role: str, row: str, name: str, time: float, details: Mapping[str, Any] | None = None) -> None:
        self._add("i", self._track(role, row), name, time, s="p", args=dict(details or {}))

    def curve(self, role: str, name: str, time: float, value: float) -> None:
        track = self._track(role, "")
        self._add("C", track, name, time, args={"value": value})

    def arrow(self, key: str, role: str, row: str, time: float, *, begins: bool) -> None:
        """An end of the arrow `key`; it attaches to the slice of the row that covers `time`."""
        kind = {} if begins else {"bp": "e"}
        self._add("s" if begins else "f", self._track(role, row), "weights", time, id=key, cat="weights", **kind)

    def as_json(self) -> dict[str, Any]:
        """The trace; events in the order of time, names of processes and rows first."""
        named = [
            {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": role}}
            for role, pid in self._processes.items()
        ]
        named += [
            {"ph": "M", "name": "thread_name", "pid": t.process, "tid": t.thread, "args": {"name": row}}
            for (_, row), t in self._tracks.items()
            if row
        ]
        return {"traceEvents": [*named, *sorted(self.events, key=lambda e: e["ts"])], "displayTimeUnit": "ms"}

    def _track(self, role: str, row: str) -> _Track:
        process = self._processes.setdefault(role, len(self._processes) + 1)
        return self._tracks.setdefault((role, row), _Track(process, len(self._tracks) + 1))

    def _add(self, kind: str, track: _Track, name: str, time: float, **more: Any) -> None:
        where = {"pid": track.process, "tid": track.thread}
        self.events.append({"ph": kind, "name": name, "ts": _micros(max(time, 0.0)), **where, **more})


def write_timeline(run_dir: Path, into: Path | None = None) -> Path:
    """Writes the trace of a run that goes on or has ended, timeline.json in its folder unless told otherwise.

    Raises:
        NoSummaryError: the folder holds no reports.
    """
    path = into if into is not None else run_dir / "timeline.json"
    path.write_text(json.dumps(make_timeline(run_dir)))
    return path


def make_timeline(run_dir: Path) -> dict[str, Any]:
    """The trace as a dictionary; also steps that a crash took back are in it: they took their time.

    Raises:
        NoSummaryError: the folder holds no reports.
    """
    rows, events = read(run_dir / METRICS_FILE), read(run_dir / EVENTS_FILE)
    times = [line["time"] for line in (*rows, *events)]
    if not times:
        raise NoSummaryError(f"{run_dir} holds no reports yet: a timeline is made from {METRICS_FILE}")
    timeline = Timeline(began=min(times))
    records = [*((time, _metrics, row) for time, row in _ended(rows)), *((e["time"], _event, e) for e in events)]
    records += [(e["time"], _evaluation, e) for e in read(run_dir / EVALUATIONS_FILE) if "splits" in e]
    for time, draw, record in sorted(records, key=lambda each: each[0]):
        draw(timeline, time - timeline.began, record)
    return timeline.as_json()


def _ended(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[float, Mapping[str, Any]]]:
    """Rows with the time at which what they tell of was over. A step is told after its weights were copied."""
    copied: Mapping[str, Any] | None = None
    for row in rows:
        time = row["time"]
        if row.get("role") == LEARNER and row.get("publish_s") is not None:
            copied = row
        elif row.get("train_s") is not None and copied is not None and copied["step"] == row["step"]:
            time = copied["time"] - copied["publish_s"]
        yield time, row


def _metrics(timeline: Timeline, time: float, row: Mapping[str, Any]) -> None:
    role = str(row.get("role"))
    if role == LEARNER:
        _learner(timeline, time, row)
    for name in COUNTERS.get(role.partition("-")[0], ()):
        if row.get(name) is not None:
            timeline.curve(role, name, time, row[name])
    if row.get(RESUMED) is not None:
        timeline.moment("run", "events", f"went back to step {row[RESUMED]:g}", time)


def _learner(timeline: Timeline, time: float, row: Mapping[str, Any]) -> None:
    step = int(row["step"])
    for name, where, text in (
        ("publish_s", "steps", f"copy weights of step {step}"),
        ("checkpoint_s", "steps", f"copy state of step {step}"),
        ("publish_write_s", "writes versions", f"write version of step {step}"),
        ("checkpoint_write_s", "writes checkpoints", f"write checkpoint of step {step}"),
    ):
        if row.get(name) is not None:
            start, end = timeline.slice(LEARNER, where, text, time, row[name])
            if name == "publish_write_s":
                timeline.arrow(f"step-{step}", LEARNER, where, (start + end) / 2, begins=True)
    if row.get("train_s") is None:
        return
    numbers = {name: row[name] for name in ("loss", "reward_mean", "trained_tokens") if row.get(name) is not None}
    if row.get("lease_wait_s"):
        timeline.slice(LEARNER, "steps", "wait for batch", time - row["train_s"], row["lease_wait_s"])
    start, end = timeline.slice(LEARNER, "steps", f"step {step}", time, row["train_s"], numbers)
    known = [(phase, row.get(f"train_phase/{phase}_s")) for phase in PHASES]
    timeline.parts(LEARNER, "phases of the step", start, end, [(p, s) for p, s in known if s])


def _event(timeline: Timeline, time: float, event: Mapping[str, Any]) -> None:
    kind, role = str(event["kind"]), str(event.get("worker", "run"))
    details = {name: value for name, value in event.items() if name not in ("time", "kind", "worker")}
    if event.get("seconds") is not None:  # something was away, and is back
        who = LEARNER if kind.startswith(LEARNER) else str(event.get("box", role))
        timeline.slice(who, "away", kind, time, event["seconds"], details)
        return
    if kind == "trained":  # told of each step already
        return
    if kind != "activated":
        timeline.moment(role, "events", kind, time, details)
        return
    pause = event.get("pause_s") or 0.0
    if event.get("verify_s"):
        timeline.slice(role, "new weights", "verify", time - pause, event["verify_s"])
    start, end = timeline.slice(role, "new weights", f"version {event['version']}", time, pause, details)
    parts = [(name.removesuffix("_s"), event[name]) for name in ACTIVATION if event.get(name)]
    timeline.parts(role, "within the pause", start, end, parts)
    timeline.arrow(f"step-{event.get('step')}", role, "new weights", (start + end) / 2, begins=False)


def _evaluation(timeline: Timeline, time: float, evaluation: Mapping[str, Any]) -> None:
    accuracies = {name: split["accuracy"] for name, split in evaluation["splits"].items()}
    timeline.slice("evaluation", "held-out", f"step {evaluation['step']}", time, evaluation["seconds"], accuracies)


def _micros(seconds: float) -> int:
    return round(1e6 * seconds)
