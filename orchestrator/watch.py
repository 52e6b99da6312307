"""`braid watch`: the live page of a run, from another terminal, from its files alone."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from orchestrator.run_files import RunFiles
from orchestrator.run_log import STATUS_FILE
from orchestrator.summary import format_seconds, print_summary, read_summary
from orchestrator.view import RunView

POLL_S = 1.0

SILENT_S = 60.0
"""A run that trains tells more every few seconds; after this long a reader should know that it does not."""

ENDED = ("done", "stopped", "failed")
"""Phases after which nothing more comes."""


def watch_run(
    run_dir: Path,
    *,
    show_page: bool = True,
    output: TextIO | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.time,
) -> None:
    """Shows a run until it ends, then its final table; of a run that has ended at once both.

    Reads files only: it needs neither the cluster nor its token, and whatever happens to it the run does not notice.

    Args:
        show_page: False prints one line per step also on a terminal.
        clock: seconds since the epoch, as in the status.

    Raises:
        NoSummaryError: the run ended before it had anything to sum up.
    """
    with RunView(run_dir, dashboard=_dashboard(run_dir), enabled=show_page, output=output) as view:
        status = read_status(run_dir)
        if status is None:
            view.message("the run has not told anything yet")
        while not _has_ended(run_dir, status):
            if status is not None:
                view.update(_with_silence(status, clock()))
            sleep(POLL_S)
            status = read_status(run_dir)
        if status is not None:
            view.update(status)
    print_summary(run_dir, output)


def read_status(run_dir: Path) -> dict[str, Any] | None:
    """The newest status the run has written, or None before the first."""
    path = run_dir / STATUS_FILE
    return json.loads(path.read_text()) if path.exists() else None


def _has_ended(run_dir: Path, status: Mapping[str, Any] | None) -> bool:
    """Also of a run whose status file is lost: then its summary says."""
    if status is None and (run_dir / "summary.json").exists():
        status = read_summary(run_dir)
    return status is not None and status["phase"] in ENDED


def _with_silence(status: Mapping[str, Any], now: float) -> Mapping[str, Any]:
    silent_s = now - status["time"]
    if silent_s < SILENT_S:
        return status
    text = f"nothing new for {format_seconds(silent_s)}: `braid status` asks whether the run is alive"
    return {**status, "warnings": [*status["warnings"], text]}


def _dashboard(run_dir: Path) -> str | None:
    cluster = RunFiles(run_dir).cluster
    return json.loads(cluster.read_text())["dashboard"] if cluster.exists() else None
