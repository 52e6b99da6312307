"""The line files of a run (metrics, events, evaluations): appended through crashes, read back as one history."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
EVALUATIONS_FILE = "evaluations.jsonl"
STATUS_FILE = "status.json"
"""The newest live status with the time it was taken, for readers that are no part of the run's cluster."""

RESUMED = "resumed_step"
"""A line with this key says: the run went back to that step; earlier lines of later steps are void."""


def encode(value: Any) -> str:
    """One line of strict JSON: numbers that are not finite become null, unknown types their text."""
    return json.dumps(_plain(value), default=str, allow_nan=False)


class LineFile:
    """Appends lines to a file, from one writer. Opened at the first line; one that a crash cut off is removed then."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def append(self, line: Mapping[str, Any]) -> None:
        """Writes one line, which then survives the death of this process."""
        if self._file is None:
            if self._path.exists():
                with self._path.open("r+b") as file:
                    _cut_torn_end(file)
            self._file = self._path.open("a", encoding="utf-8")
        self._file.write(encode(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """A later line opens the file again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines in the order written, a torn or damaged one left out; empty when there is no file."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def surviving(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The lines that belong to the history of the present weights: what a crash took back is left out."""
    kept: list[dict[str, Any]] = []
    for line in lines:
        if line.get(RESUMED) is not None:
            kept = [earlier for earlier in kept if earlier.get("step", 0) <= line[RESUMED]]
        else:
            kept.append(dict(line))
    return kept


def write_json(path: Path, value: Any, *, indent: int | None = None) -> None:
    """Replaces a file in one move, so that a reader never sees half of it."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(json.dumps(_plain(value), default=str, allow_nan=False, indent=indent))
    temporary.replace(path)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and callable(value.item):  # numpy and torch scalars
        return _plain(value.item())
    return value


def _cut_torn_end(file: Any) -> None:
    end = file.seek(0, os.SEEK_END)
    position = end
    while position > 0:
        start = max(0, position - 4096)
        file.seek(start)
        newline = file.read(position - start).rfind(b"\n")
        if newline >= 0:
            file.truncate(start + newline + 1)
            return
        position = start
    file.truncate(0)
