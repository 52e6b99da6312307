"""Tracker: every report of a run to every sink, without anybody waiting for a sink."""

from __future__ import annotations

import contextlib
import json
import queue
import re
import secrets
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from orchestrator.config import TrackingConfig
from orchestrator.run_log import METRICS_FILE, RESUMED, LineFile
from rewards.telemetry import METRICS, Report, Sink, UnknownMetricError, describe, row_of

MAX_QUEUED = 4096
"""Reports that wait for one sink; when it is slower than that, newer ones are dropped and counted."""

CLOSE_TIMEOUT_S = 30.0
"""How long all sinks together may take to write what is queued at the end."""

UNPOLLED = ("learner", "evaluation")
"""Roles that report steps and evaluations, which may lie minutes apart; the others are asked every few seconds."""

RENEW_S = 5.0
"""How often the Ray sink sets its gauges of those again."""

WANDB_ID_FILE = "wandb_id.txt"
"""Keeps the identity of a run at wandb, so that a resumed run goes on in the same place."""


class Tracker:
    """Fans reports out to metrics.jsonl and the configured sinks, each behind a thread and a bounded queue of its own.

    A sink that fails, now or while it is opened, is switched off with one line in `warnings`: numbers never end a run.
    """

    def __init__(self, config: TrackingConfig, run_dir: Path) -> None:
        makers: dict[str, Callable[[], Sink | None]] = {"jsonl": lambda: JsonLinesSink(run_dir / METRICS_FILE)}
        known: dict[str, Callable[[], Sink | None]] = {
            "tensorboard": lambda: TensorBoardSink(run_dir / "tensorboard"),
            "wandb": lambda: WandbSink(config, run_dir),
            "ray": lambda: ray_sink(run_dir.name),
        }
        makers |= {name: known[name] for name in config.sinks}
        self.warnings: list[str] = []
        """What went wrong with sinks, for people."""
        self._writers = [SinkWriter(name, make, self.warnings.append) for name, make in makers.items()]

    def write(self, role: str, values: Mapping[str, float], *, step: int) -> None:
        """Queues one report; returns at once."""
        report = Report(time=time.time(), step=step, role=role, values=dict(values))
        for writer in self._writers:
            writer.put(report)

    def close(self) -> None:
        """Writes what is queued and closes the sinks; one that takes too long is left behind."""
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        for writer in self._writers:
            writer.finish()
        for writer in self._writers:
            writer.join(max(0.0, deadline - time.monotonic()))


class SinkWriter:
    """One sink in a thread of its own. The sink is also made there, because opening one may take seconds."""

    def __init__(
        self,
        name: str,
        make_sink: Callable[[], Sink | None],
        warn: Callable[[str], None],
        *,
        max_queued: int = MAX_QUEUED,
    ) -> None:
        self._name, self._make_sink, self._warn = name, make_sink, warn
        self._queue: queue.Queue[Report | None] = queue.Queue(max_queued)
        self._num_dropped = 0
        self._is_off = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"sink-{name}", daemon=True)
        self._thread.start()

    def put(self, report: Report) -> None:
        """Never waits: a report that does not fit is dropped and counted."""
        if self._is_off or self._closing.is_set():
            return
        try:
            self._queue.put_nowait(report)
        except queue.Full:
            self._num_dropped += 1

    def finish(self) -> None:
        """No more reports; the thread ends when it has written the queued ones."""
        self._closing.set()
        with contextlib.suppress(queue.Full):  # then the thread sees `_closing` when it has emptied the queue
            self._queue.put_nowait(None)

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._switch_off(f"it did not finish in time; {self._queue.qsize()} reports were not written")
        elif self._num_dropped:
            self._warn(f"tracking sink {self._name!r} was too slow: {self._num_dropped} reports were dropped")

    def _run(self) -> None:
        try:
            sink = self._make_sink()
            if sink is None:
                self._is_off = True
                return
            try:
                self._write_all(sink)
            finally:
                sink.close()
        except Exception as error:  # whatever a sink throws: it concerns the numbers, never the run
            self._switch_off(f"{type(error).__name__}: {error}")

    def _write_all(self, sink: Sink) -> None:
        num_told = 0
        while (report := self._next()) is not None:
            sink.write(report)
            if self._num_dropped > num_told:
                dropped, num_told = self._num_dropped - num_told, self._num_dropped
                sink.write(replace(report, role="run", values={"dropped_reports": float(dropped)}))

    def _next(self) -> Report | None:
        """The next report, or None at the end."""
        if not self._closing.is_set():
            return self._queue.get()
        try:
            return self._queue.get_nowait()
        except queue.Empty:
            return None

    def _switch_off(self, reason: str) -> None:
        if not self._is_off:
            self._is_off = True
            self._warn(f"tracking sink {self._name!r} is off: {reason}")


class JsonLinesSink:
    """metrics.jsonl: one line per report with time, step, role and the values side by side."""

    def __init__(self, path: Path) -> None:
        self._file = LineFile(path)

    def write(self, report: Report) -> None:
        self._file.append({"time": report.time, "step": report.step, "role": report.role, **report.values})

    def close(self) -> None:
        self._file.close()


class TensorBoardSink:
    """Scalars named role/metric. A resumed run hides what the crash took back."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer = self._open(None)

    def write(self, report: Report) -> None:
        if RESUMED in report.values:
            self._writer.close()
            self._writer = self._open(int(report.values[RESUMED]) + 1)
        for name, value in report.values.items():
            self._writer.add_scalar(f"{report.role}/{name}", value, report.step, walltime=report.time)

    def close(self) -> None:
        self._writer.close()

    def _open(self, purge_step: int | None) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self._folder), purge_step=purge_step)


class WandbSink:
    """A wandb run with metrics named role/metric over the learner's step; offline needs no network."""

    def __init__(self, config: TrackingConfig, run_dir: Path) -> None:
        import wandb

        id_file, config_file = run_dir / WANDB_ID_FILE, run_dir / "config.json"
        if not id_file.exists():
            id_file.write_text(secrets.token_hex(4))
        self._run = wandb.init(
            project=config.wandb_project,
            name=run_dir.name,
            id=id_file.read_text().strip(),
            mode=config.wandb_mode,
            resume="allow" if config.wandb_mode == "online" else None,
            dir=str(run_dir),
            config=json.loads(config_file.read_text()) if config_file.exists() else {},
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
        )
        # evaluations arrive after later steps; with an axis of their own they are not refused
        self._run.define_metric("*", step_metric="step")

    def write(self, report: Report) -> None:
        named = {f"{report.role}/{name}": value for name, value in report.values.items()}
        self._run.log({"step": report.step, **named})

    def close(self) -> None:
        self._run.finish()


class RaySink:
    """Gauges and counters of Ray's own metrics, tagged with run, role and, in a family of metrics, name: what stands
    for `*` in its row of the table. One series per row keeps dashboards independent of a run's terms and reasons.

    Ray shows a gauge for some 20 s after it was set. Those of roles that speak only when something has happened are set
    again meanwhile, with the next report of anybody; those of a polled worker that falls silent disappear.

    Args:
        metrics: `ray.util.metrics`.
    """

    def __init__(self, run: str, metrics: ModuleType | Any) -> None:
        self._run, self._metrics = run, metrics
        self._exported: dict[str, Any] = {}
        self._totals: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._held: dict[tuple[str, str], tuple[float, dict[str, str]]] = {}
        self._renewed_at = time.monotonic()

    def write(self, report: Report) -> None:
        for name, value in report.values.items():
            try:
                metric = describe(name)
            except UnknownMetricError:
                continue  # the recorder has counted it
            row = row_of(name)
            labels = {"role": report.role, "run": self._run, "name": member(name, row)}
            if metric.is_count:
                self._count(name, row, value, labels)
            elif value == value:  # NaN is no state a gauge could show
                self._export(row).set(value, tags=labels)
                if report.role in UNPOLLED:
                    self._held[report.role, name] = (value, labels)
        self._renew()

    def close(self) -> None:
        """Ray owns what was exported."""

    def _renew(self) -> None:
        now = time.monotonic()
        if now - self._renewed_at >= RENEW_S:
            self._renewed_at = now
            for (_, name), (value, labels) in self._held.items():
                self._export(row_of(name)).set(value, tags=labels)

    def _count(self, name: str, row: str, value: float, labels: dict[str, str]) -> None:
        growth = value
        if METRICS[row].reduction == "total":
            key = (labels["role"], name)
            before, self._totals[key] = self._totals[key], value
            growth = value - before if value >= before else value  # a restarted reporter begins at 0
        if growth > 0:
            self._export(row).inc(growth, tags=labels)

    def _export(self, row: str) -> Any:
        name = prometheus_name(row)
        if name not in self._exported:
            metric = METRICS[row]
            kind = self._metrics.Counter if metric.is_count else self._metrics.Gauge
            text = f"{metric.meaning} Unit: {metric.unit}."
            self._exported[name] = kind(name, description=text, tag_keys=("role", "run", "name"))
        return self._exported[name]


def prometheus_name(row: str) -> str:
    """braid_ and the row's name with `*` and what Prometheus refuses left out: term/*/loss -> braid_term_loss.

    Behind an underscore `*` reads `by`, so that a count by reason is not mistaken for the whole: groups_refused_*.
    """
    return "braid_" + re.sub(r"[^A-Za-z0-9]+", "_", re.sub(r"_\*$", "_by", row)).strip("_")


def series_name(row: str) -> str:
    """What Prometheus calls the series of a row after Ray has exported it."""
    return f"ray_{prometheus_name(row)}{'_total' if METRICS[row].is_count else ''}"


def member(name: str, row: str) -> str:
    """What stands for `*` in a name of the row's family: term/live/x#2/loss of term/*/loss -> live/x#2."""
    before, _, after = row.partition("*")
    return name[len(before) : len(name) - len(after)] if "*" in row else ""


def ray_sink(run: str) -> RaySink | None:
    """A sink in a process that is part of a Ray cluster, else None. Never loads Ray by itself."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    from ray.util import metrics

    return RaySink(run, metrics)
