"""The final table of a run: from summary.json to sections of rows, for the terminal and for the report."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

MISSING = "–"

STAGES = {
    "rollout": "sampled, while an engine was busy",
    "learner_trained": "trained on, during optimizer steps",
    "learner_computed": "computed, during optimizer steps",
    "end_to_end_generated": "sampled, over the wall clock",
    "end_to_end_trained": "trained on, over the wall clock",
}
"""Keys of `tokens_per_s` to what they count."""

TIMES = {
    "learner": "Where the learner's time went",
    "step": "Where the optimizer steps' time went",
    "rollout": "Where the engines' time went",
}
"""Keys of `time_s` to what they divide."""

PHASES = {
    "pause_s": "engine stood still, in all",
    "verify_s": "files checked, before the pause",
    "freeze_s": "freeze",
    "load_s": "load",
    "reset_s": "reset of caches",
    "probe_s": "probe",
}
"""Phases of an activation to their names."""


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the final table. The first cell of a row is its name; cells are text as shown."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    is_numeric: bool = True
    """The cells after the first are numbers."""


class NoSummaryError(FileNotFoundError):
    """The folder holds no summary: not a run, or one that never got to its first report."""


def read_summary(run_dir: Path) -> dict[str, Any]:
    """Raises NoSummaryError."""
    path = run_dir / "summary.json"
    if not path.exists():
        raise NoSummaryError(
            f"{run_dir} holds no summary.json, so there is nothing to show: it is no run, or it ended before its boxes "
            "were up. Its events.jsonl says how far it came."
        )
    return json.loads(path.read_text())


def read_config(run_dir: Path) -> dict[str, Any]:
    """The resolved configuration of a run as plain data; empty when there is none."""
    path = run_dir / "config.json"
    return json.loads(path.read_text()) if path.exists() else {}


def print_summary(run_dir: Path, output: TextIO | None = None) -> None:
    """Prints the final table of a run.

    Raises:
        NoSummaryError: there is no summary to print.
    """
    console = Console(file=output or sys.stdout, highlight=False)
    for section in summary_sections(read_summary(run_dir), read_config(run_dir), run_dir):
        table = Table(box=None, padding=(0, 1), pad_edge=False, show_header=any(section.headings), header_style="dim")
        for index, heading in enumerate(section.headings):
            is_text = index == 0 or not section.is_numeric
            table.add_column(heading, justify="left" if is_text else "right", overflow="fold")
        for row in section.rows:
            table.add_row(*(Text(cell) for cell in row))
        console.print(Text(section.title, style="bold"))
        console.print(Padding(table, (0, 0, 0, 2), expand=False))
        if section.note:
            console.print(Text(f"  {section.note}", style="dim"))
        console.print()


def summary_sections(summary: Mapping[str, Any], config: Mapping[str, Any], run_dir: Path) -> list[Section]:
    """All parts that have something to say, in the order of interest."""
    sections = [
        _run_section(summary, config),
        _accuracy_section(summary),
        _rate_section(summary),
        *(_time_section(TIMES[name], parts, _num_engines(summary)) for name, parts in summary["time_s"].items()),
        _age_section(summary, config),
        _activation_section(summary),
        _count_section("Verdicts", "status", summary["verdicts"], "Answers judged, held-out ones included."),
        _count_section("Groups dropped", "by whom and why", summary["drops"], ""),
        _file_section(summary, run_dir),
    ]
    return [section for section in sections if section.rows]


def _run_section(summary: Mapping[str, Any], config: Mapping[str, Any]) -> Section:
    counts = summary["counts"]
    rows = [
        ("recipe", str(config.get("name", MISSING))),
        ("model", str(config.get("model", MISSING))),
        ("state", str(summary["phase"])),
        ("steps", f"{summary['step']} of {summary['num_steps']}"),
        ("training wall clock", format_seconds(summary["wall_s"])),
        ("tokens sampled", format_number(counts.get("generated_tokens"))),
        ("tokens trained", format_number(counts.get("trained_tokens"))),
        ("steps skipped (not finite)", format_number(counts.get("skipped_steps", 0))),
    ]
    if summary["starts"] > 1:
        rows.append(("starts", f"{summary['starts']} ({summary['redone_steps']} steps done again)"))
    rows += [("warning", text) for text in summary["warnings"]]
    return Section("Run", ("", ""), tuple(rows), is_numeric=False)


def _accuracy_section(summary: Mapping[str, Any]) -> Section:
    before, after = summary["before"], summary["after"]
    names = sorted({*before, *after}, key=lambda name: (name != "all", name))
    rows = []
    for name in names:
        size = (after.get(name) or before.get(name) or {}).get("n")
        change = MISSING
        if _has_value(before.get(name)) and _has_value(after.get(name)):
            change = f"{after[name]['accuracy'] - before[name]['accuracy']:+.3f}"
        rows.append(
            (name, format_accuracy(before.get(name)), format_accuracy(after.get(name)), change, format_number(size))
        )
    headings = ("part", "before [95 %]", "after [95 %]", "change", "samples")
    return Section("Held-out accuracy", headings, tuple(rows), "Wilson intervals; unscored samples are not counted.")


def _rate_section(summary: Mapping[str, Any]) -> Section:
    rates = summary["tokens_per_s"]
    rows = [(str(STAGES.get(name, name)), format_number(rate)) for name, rate in rates.items()]
    return Section("Tokens per second", ("tokens", "per second"), tuple(rows))


def _time_section(title: str, parts: Mapping[str, float], num_engines: int) -> Section:
    """Shares are of what the parts add up to, without `new weights`, which lies within the others."""
    whole = sum(seconds for name, seconds in parts.items() if name != "new weights")
    rows = [
        (name, format_seconds(seconds), f"{seconds / whole:.1%}" if whole > 0 else MISSING)
        for name, seconds in parts.items()
    ]
    note = ""
    if "new weights" in parts:
        note = f"Added over {num_engines} engines; new weights are activated while busy or idle."
    return Section(title, ("", "time", "share"), tuple(rows) if whole > 0 else (), note)


def _age_section(summary: Mapping[str, Any], config: Mapping[str, Any]) -> Section:
    histogram = summary["age_histogram"]
    whole = sum(histogram.values())
    bound = config.get("replay", {}).get("max_age", MISSING)
    rows = [(age, format_number(count), f"{count / whole:.1%}") for age, count in histogram.items()]
    note = f"At most {bound} allowed; {summary['age_violations']} violations."
    return Section("Policy age of live groups at hand-out", ("age in steps", "groups", "share"), tuple(rows), note)


def _activation_section(summary: Mapping[str, Any]) -> Section:
    activations = summary["activations"]
    rows = [
        (label, format_seconds(activations[name]["mean"]), format_seconds(activations[name]["max"]))
        for name, label in PHASES.items()
        if name in activations
    ]
    errors = {"probe_mean_error": "probe error, mean (nats)", "probe_max_error": "probe error, largest (nats)"}
    rows += [
        (label, format_number(activations[name]["mean"]), format_number(activations[name]["max"]))
        for name, label in errors.items()
        if name in activations
    ]
    count = max((int(spread["count"]) for spread in activations.values()), default=0)
    return Section("Activation of new weights", ("", "mean", "largest"), tuple(rows), f"{count} activations.")


def _count_section(title: str, heading: str, counts: Mapping[str, int], note: str) -> Section:
    whole = sum(counts.values())
    rows = [(name, format_number(count), f"{count / whole:.1%}") for name, count in counts.items() if count]
    return Section(title, (heading, "count", "share"), tuple(rows), note)


def _file_section(summary: Mapping[str, Any], run_dir: Path) -> Section:
    """Only what is there."""
    best = summary["best"]
    places = {
        "report": run_dir / "report.html",
        "model": run_dir / "model",
        f"best model (step {best['step']})" if best else "best model": run_dir / "best",
        "checkpoints": run_dir / "checkpoints",
        "numbers": run_dir / "metrics.jsonl",
    }
    rows = tuple((name, str(path)) for name, path in places.items() if path.exists())
    return Section("Files", ("", ""), rows, is_numeric=False)


def _num_engines(summary: Mapping[str, Any]) -> int:
    return sum("busy_s" in values for values in summary["workers"].values())


def _has_value(accuracy: Mapping[str, Any] | None) -> bool:
    return accuracy is not None and accuracy["accuracy"] is not None and not math.isnan(accuracy["accuracy"])


def format_accuracy(accuracy: Mapping[str, Any] | None) -> str:
    """0.613 [0.557, 0.666]; a dash when nothing was scored."""
    if not _has_value(accuracy):
        return MISSING
    assert accuracy is not None
    return f"{accuracy['accuracy']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}]"


def format_number(value: float | None) -> str:
    """Four digits that matter: 12,345; 0.4321; 3.2e-05; a dash for nothing."""
    if value is None or math.isnan(value):
        return MISSING
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def format_seconds(value: float | None) -> str:
    """12 ms; 3.42 s; 2 min 05 s; 1 h 02 min."""
    if value is None or math.isnan(value):
        return MISSING
    if 0 < value < 0.9995:
        return f"{value * 1000:.3g} ms"
    if value < 59.995:
        return f"{value:.2f} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
