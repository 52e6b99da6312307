"""RunHistory: the files of one run as series, ready to be drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.run_log import EVALUATIONS_FILE, METRICS_FILE, read, surviving
from orchestrator.run_totals import LEARNER
from orchestrator.summary import read_config, read_summary

Series = tuple[list[float], list[float]]
"""x and y of one line, without the points that are not numbers."""


class AccuracyPoint(NamedTuple):
    """One evaluation: when, what, and both ends of the interval."""

    step: int
    minutes: float
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class RunHistory:
    """What one run left behind; lines that a crash made void are gone.

    Attributes:
        rows: lines of metrics.jsonl by role.
        evaluations: lines of evaluations.jsonl in the order of steps.
    """

    run_dir: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    rows: Mapping[str, Sequence[Mapping[str, Any]]]
    evaluations: Sequence[Mapping[str, Any]]

    @classmethod
    def load(cls, run_dir: Path) -> RunHistory:
        """Raises NoSummaryError where no run lies."""
        rows: dict[str, list[dict[str, Any]]] = {}
        for row in surviving(read(run_dir / METRICS_FILE)):
            rows.setdefault(str(row.get("role")), []).append(row)
        by_step = {e["step"]: e for e in surviving(read(run_dir / EVALUATIONS_FILE)) if "splits" in e}
        evaluations = [by_step[step] for step in sorted(by_step)]
        return cls(run_dir, read_config(run_dir), read_summary(run_dir), rows, evaluations)

    @property
    def name(self) -> str:
        """Of the recipe; runs that differ only in their seed share it."""
        return str(self.config.get("name", self.run_dir.name))

    def learner(self, name: str) -> Series:
        """One learner metric over steps."""
        return _series((row["step"], row.get(name)) for row in self.rows.get(LEARNER, ()))

    def learner_rate(self, amount: str, seconds: str) -> Series:
        """amount per second of each step."""
        return _series(
            (row["step"], row[amount] / row[seconds])
            for row in self.rows.get(LEARNER, ())
            if row.get(amount) is not None and row.get(seconds)
        )

    def term_metrics(self) -> dict[str, list[str]]:
        """Metrics of each loss term by its label, as `live/clipped_surrogate`."""
        metrics: dict[str, list[str]] = {}
        names = dict.fromkeys(name for row in self.rows.get(LEARNER, ()) for name in row)
        for name in names:
            if name.startswith("term/"):
                label, _, metric = name.removeprefix("term/").rpartition("/")
                metrics.setdefault(label, []).append(metric)
        return metrics

    def worker_rate(self, total: str) -> dict[str, Series]:
        """Growth per second of a running count of each worker, over minutes since the first line of the run.

        Averaged over at least a 60th of the run: engines work in bursts.
        """
        times = [row["time"] for rows in self.rows.values() for row in rows]
        began, period = min(times, default=0.0), (max(times, default=0.0) - min(times, default=0.0)) / 60
        rates: dict[str, Series] = {}
        for role, rows in self.rows.items():
            points = _apart([(row["time"], row[total]) for row in rows if row.get(total) is not None], period)
            growth = [
                ((t1 - began) / 60, (v1 - v0) / (t1 - t0))
                for (t0, v0), (t1, v1) in pairwise(points)
                if t1 > t0 and v1 >= v0
            ]
            if role != LEARNER and growth:
                rates[role] = _series(growth)
        return rates

    def accuracy(self, split: str) -> list[AccuracyPoint]:
        """Held-out accuracy of one part of the tasks by step, where anything was scored."""
        return [
            AccuracyPoint(e["step"], e["wall_s"] / 60, a["accuracy"], a["low"], a["high"])
            for e in self.evaluations
            if (a := e["splits"].get(split)) is not None and a["accuracy"] is not None
        ]

    @property
    def splits(self) -> list[str]:
        """Parts of the held-out tasks, the whole first."""
        names = {name for e in self.evaluations for name in e["splits"]}
        return sorted(names, key=lambda name: (name != "all", name))


def _apart(points: Sequence[tuple[float, float]], distance: float) -> list[tuple[float, float]]:
    """The first point, and each that lies at least this far behind the one kept before."""
    kept = list(points[:1])
    for point in points[1:]:
        if point[0] - kept[-1][0] >= distance:
            kept.append(point)
    return kept


def _series(points: Iterable[tuple[float, float | None]]) -> Series:
    kept = [(float(x), float(y)) for x, y in points if y is not None]
    return [x for x, _ in kept], [y for _, y in kept]
