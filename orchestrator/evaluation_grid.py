"""Several models on several task sets: cells that are kept as they are done, and what they say together."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.evaluate_model import SplitResult
from orchestrator.run_log import read
from rewards.run_statistics import AGGREGATES, aggregate, performance_profile, probability_of_improvement
from rewards.statistics import Estimate

PROFILE_LEVELS = tuple(round(0.02 * i, 2) for i in range(51))
"""Scores at which a performance profile is read."""
NUM_RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Cell:
    """One model on one task set.

    Attributes:
        setting: what several targets are runs of, e.g. a recipe; targets of one setting differ in their seed only.
        target: the model.
        key: digest of all the result depends on, see `cell_key`.
    """

    setting: str
    target: str
    task_set: str
    key: str
    results: Mapping[str, SplitResult]


class CellStore:
    """The finished cells of an evaluation, one JSON line each, so that one that was cut short goes on where it was."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cells = {cell.key: cell for cell in _read(path)}

    def get(self, key: str) -> Cell | None:
        return self._cells.get(key)

    def add(self, cell: Cell) -> None:
        self._cells[cell.key] = cell
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(cell)) + "\n")


def cell_key(model_path: Path, *parts: Any) -> str:
    """Digest of the weights' identity (names, sizes and times of the files) and of everything else that is JSON."""
    files = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in model_path.iterdir() if p.is_file())
    content = json.dumps([str(model_path.resolve()), files, parts], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:24]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the cells say together.

    Attributes:
        columns: task sets, and splits of them, that every target was asked; the `tasks` of the aggregates.
        scores: setting to [targets, columns], pass@k of the smallest k.
        aggregates: setting to the name of an aggregate to its estimate.
        profiles: setting to the share of its scores above each of PROFILE_LEVELS.
        improvements: (a, b) to the chance that a target of a beats one of b on a column.
    """

    k: int
    columns: tuple[str, ...]
    scores: Mapping[str, np.ndarray]
    aggregates: Mapping[str, Mapping[str, Estimate]]
    profiles: Mapping[str, Sequence[Estimate]]
    improvements: Mapping[tuple[str, str], Estimate]


def compare(cells: Sequence[Cell]) -> Comparison:
    """Aggregates over targets and columns with stratified bootstrap intervals.

    Raises:
        ValueError: a target has no score in a column that others have.
    """
    k = min(k for cell in cells for result in cell.results.values() for k in result.pass_at)
    columns = tuple(dict.fromkeys(column for cell in cells for column, _ in _columns(cell)))
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for cell in cells:
        row = rows.setdefault(cell.setting, {}).setdefault(cell.target, {})
        for column, result in _columns(cell):
            row[column] = result.pass_at[k].value if k in result.pass_at else math.nan
    for row in (row for targets in rows.values() for row in targets.items()):
        if missing := [column for column in columns if math.isnan(row[1].get(column, math.nan))]:
            raise ValueError(
                f"{row[0]} has no pass@{k} in {', '.join(missing)}, so it cannot be compared with the others: repeat "
                "it, or leave out that task set"
            )
    scores = {
        setting: np.array([[row[column] for column in columns] for row in targets.values()])
        for setting, targets in rows.items()
    }
    return Comparison(
        k,
        columns,
        scores,
        {
            setting: {name: aggregate(m, f, _rng(), num_resamples=NUM_RESAMPLES) for name, f in AGGREGATES.items()}
            for setting, m in scores.items()
        },
        {setting: performance_profile(matrix, PROFILE_LEVELS, _rng()) for setting, matrix in scores.items()},
        {
            (a, b): probability_of_improvement(scores[a], scores[b], _rng())
            for a, b in itertools.permutations(scores, 2)
        },
    )


def _columns(cell: Cell) -> list[tuple[str, SplitResult]]:
    """The parts of a task set, or the whole where it has none."""
    parts = [name for name in cell.results if name != "all"] or ["all"]
    return [(cell.task_set if p == "all" else f"{cell.task_set}: {p}", cell.results[p]) for p in parts]


def _rng() -> np.random.Generator:
    """The same for every number, so that a page is the same each time it is made."""
    return np.random.default_rng(0)


def _read(path: Path) -> list[Cell]:
    """Cells of a file; a last line that was cut short is left out."""
    cells = []
    for data in read(path):
        results = {name: _result(part) for name, part in data["results"].items()}
        cells.append(Cell(data["setting"], data["target"], data["task_set"], data["key"], results))
    return cells


def _result(data: Mapping[str, Any]) -> SplitResult:
    estimates = {
        name: {int(k): Estimate(**estimate) for k, estimate in data[name].items()}
        for name in ("pass_at", "majority_at", "cot_pass_at")
    }
    return SplitResult(num_tasks=data["num_tasks"], unscored=data["unscored"], **estimates)
