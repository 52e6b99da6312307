"""RunView: a run in the terminal while it goes on; one line per step where there is no terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.summary import format_accuracy, format_number, format_seconds, read_config

BLOCKS = "▁▂▃▄▅▆▇█"
WORKER_COLUMNS = {
    "version": "policy_version",
    "running": "running",
    "waiting": "waiting",
    "tokens": "generated_tokens",
    "groups": "groups_stored",
}
"""Heading to metric of the table of rollout workers."""

LEARNER_NUMBERS = {"loss": "loss", "grad_norm": "gradient norm", "learning_rate": "learning rate"}
LINE_RATES = {"rollout": "sampling tok/s", "learner_trained": "learning tok/s"}
LINE_NUMBERS = {"reward_mean": "reward", "loss": "loss", "policy_age_mean": "age", "policy_age_max": "oldest"}
STEP_TIMES = {"train_s": "train", "lease_wait_s": "wait for batch", "publish_s": "publish"}
RATES = {"rollout": "sampling", "learner_trained": "learning", "end_to_end_trained": "trained end to end"}
"""Metric to label of the numbers on the page."""

MAX_WORKERS_SHOWN = 8
MAX_MESSAGES_SHOWN = 4


class RunView:
    """Shows what `RunRecorder.status` says. A display that fails is given up: it never ends a run.

    Args:
        dashboard: address of the Ray dashboard.
        enabled: False prints plain lines also on a terminal.
        output: where to; the terminal's standard output when None.
    """

    def __init__(
        self, run_dir: Path, *, dashboard: str | None = None, enabled: bool = True, output: TextIO | None = None
    ) -> None:
        self._run_dir, self._dashboard = run_dir, dashboard
        self._output = output or sys.stdout
        console = _Console(file=self._output)
        self._page = _Live(console) if enabled and console.is_terminal else None
        self._lines = PlainLines()
        self._messages: list[str] = []
        self._config = read_config(run_dir)
        self._is_off = False

    def __enter__(self) -> RunView:
        if self._page is not None:
            self._page.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        """Gives the terminal back whatever happened; the last page stays."""
        if self._page is not None:
            self._page.stop()

    def message(self, text: str) -> None:
        """One line for the reader: on the page with the next update, else at once."""
        if self._page is not None:
            self._messages.append(text)
        else:
            self._print(text)

    def update(self, status: Mapping[str, Any]) -> None:
        """Shows a newer status."""
        if self._is_off:
            return
        try:
            self._show(status)
        except Exception as error:  # the run must not end because its picture cannot be drawn
            page, self._page = self._page, None
            if page is not None:
                page.stop()
            self._print(f"view is {'reduced to lines' if page else 'off'}: {type(error).__name__}: {error}")
            self._is_off = page is None

    def _show(self, status: Mapping[str, Any]) -> None:
        status = {**status, "eta_s": _bounded_eta(status, self._config)}
        if self._page is not None:
            self._page.show(render_page(status, self._config, self._run_dir, self._dashboard, self._messages))
        else:
            for line in self._lines.of(status):
                self._print(line)

    def _print(self, text: str) -> None:
        if self._is_off:
            return
        try:
            print(text, file=self._output, flush=True)
        except OSError:  # nobody reads any more
            self._is_off = True


class _Console(Console):
    """rich's console, but a reader that went away is an error of the display and not the end of the program."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError("nobody reads the terminal any more")


class _Live:
    """rich's live display, redrawn only when there is something new."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=False, vertical_overflow="crop")

    def start(self) -> None:
        self._live.start()

    def stop(self) -> None:
        with contextlib.suppress(OSError):  # a terminal that is gone needs nothing back
            self._live.stop()

    def show(self, page: RenderableType) -> None:
        self._live.update(page, refresh=True)


class PlainLines:
    """What is new in a status since the last one, as lines for a log."""

    def __init__(self) -> None:
        self._phase = ""
        self._step = -1
        self._num_evaluations = 0
        self._num_warnings = 0

    def of(self, status: Mapping[str, Any]) -> list[str]:
        lines = []
        if status["phase"] != self._phase:
            self._phase = status["phase"]
            lines.append(f"phase {self._phase}")
        if status["step"] != self._step:
            self._step = status["step"]
            if status["step"] > 0:
                lines.append(_step_line(status))
        evaluations = status["evaluations"]
        if len(evaluations) < self._num_evaluations:  # a resumed run took some back
            self._num_evaluations = 0
        lines += [f"evaluation {_evaluation_text(e)}" for e in evaluations[self._num_evaluations :]]
        self._num_evaluations = len(evaluations)
        lines += [f"warning: {text}" for text in status["warnings"][self._num_warnings :]]
        self._num_warnings = len(status["warnings"])
        return lines


def _step_line(status: Mapping[str, Any]) -> str:
    parts = [
        f"step {status['step']}/{status['num_steps']}",
        _numbers_text(status["latest"], LINE_NUMBERS, format_number),
        _numbers_text(status["latest"], STEP_TIMES, format_seconds),
        _numbers_text(status["tokens_per_s"], LINE_RATES, format_number),
        "" if status["eta_s"] is None else f"eta {format_seconds(status['eta_s'])}",
    ]
    return "  ".join(part for part in parts if part)


def _bounded_eta(status: Mapping[str, Any], config: Mapping[str, Any]) -> float | None:
    """Seconds to the last step, or to the time limit of the run when that comes first."""
    limit = config.get("max_minutes")
    if limit is None or status["eta_s"] is None:
        return status["eta_s"]
    return max(0.0, min(status["eta_s"], 60.0 * limit - status["wall_s"]))


def render_page(
    status: Mapping[str, Any],
    config: Mapping[str, Any],
    run_dir: Path,
    dashboard: str | None,
    messages: Sequence[str] = (),
) -> RenderableType:
    """The whole page for one status."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    rows = {
        "run": f"{run_dir.name}   {config.get('model', '')}",
        "dashboard": dashboard or "not available",
        "reward": _reward_text(status),
        "policy age": _age_text(status, config),
        "learner": _numbers_text(status["latest"], LEARNER_NUMBERS, format_number) or "no step yet",
        "step time": _numbers_text(status["latest"], STEP_TIMES, format_seconds) or "no step yet",
        "tokens/s": _numbers_text(status["tokens_per_s"], RATES, format_number) or "nothing sampled or trained yet",
        "held-out": _evaluation_text(status["evaluations"][-1], "\n") if status["evaluations"] else "not evaluated yet",
    }
    for label, text in rows.items():
        facts.add_row(label, Text(text))
    for label, text in _wait_rows(status["waits"]):
        facts.add_row(label, Text(text, style="dim"))
    parts: list[RenderableType] = [_progress(status), Text(""), facts, Text(""), _workers_table(status)]
    parts += [Text(f"warning: {text}", style="yellow") for text in status["warnings"][-MAX_MESSAGES_SHOWN:]]
    parts += [Text(text, style="cyan") for text in messages[-MAX_MESSAGES_SHOWN:]]
    return Group(*parts)


def _progress(status: Mapping[str, Any]) -> RenderableType:
    row = Table.grid(padding=(0, 1))
    step, num_steps = status["step"], status["num_steps"]
    eta = "" if status["eta_s"] is None else f"eta {format_seconds(status['eta_s'])}"
    row.add_row(
        Text(status["phase"], style="bold green" if status["phase"] != "failed" else "bold red"),
        f"step {step}/{num_steps}",
        ProgressBar(total=max(num_steps, 1), completed=step, width=30),
        f"{format_seconds(status['wall_s'])} elapsed",
        eta,
    )
    return row


def _reward_text(status: Mapping[str, Any]) -> str:
    latest = status["latest"].get("reward_mean")
    return "no batch yet" if latest is None else f"{format_number(latest)}  {sparkline(status['rewards'])}"


def _age_text(status: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    latest = status["latest"]
    bound = config.get("replay", {}).get("max_age", "?")
    if latest.get("policy_age_mean") is None:
        return f"no live batch yet (bound {bound})"
    ages = f"mean {format_number(latest['policy_age_mean'])}, max {format_number(latest['policy_age_max'])}"
    return f"{ages} of at most {bound} steps; {status['age_violations']} violations"


def _numbers_text(values: Mapping[str, float], labels: Mapping[str, str], form: Callable[[float], str]) -> str:
    return "  ".join(f"{label} {form(values[name])}" for name, label in labels.items() if values.get(name) is not None)


def _wait_rows(waits: Mapping[str, str]) -> list[tuple[str, str]]:
    """One row per reason: many workers wait for the same thing."""
    by_reason: dict[str, list[str]] = {}
    for waiter, reason in waits.items():
        by_reason.setdefault(reason, []).append(waiter)
    return [
        ("waiting", f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}: {reason}")
        for reason, names in by_reason.items()
    ]


def _workers_table(status: Mapping[str, Any]) -> RenderableType:
    table = Table(box=None, header_style="bold dim", padding=(0, 1), pad_edge=False)
    for heading in ("worker", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in (*WORKER_COLUMNS, "dropped"):
        table.add_column(heading, justify="right", no_wrap=True)
    names = list(dict.fromkeys((*status["states"], *(n for n, v in status["workers"].items() if "busy_s" in v))))
    for name in names[:MAX_WORKERS_SHOWN]:
        values = status["workers"].get(name, {})
        dropped = sum(v for k, v in values.items() if k.startswith("groups_dropped"))
        cells = [format_number(values.get(column)) for column in WORKER_COLUMNS.values()] if values else []
        table.add_row(Text(name), status["states"].get(name, ""), *cells, format_number(dropped) if values else "")
    if len(names) > MAX_WORKERS_SHOWN:
        table.add_row(f"and {len(names) - MAX_WORKERS_SHOWN} more")
    return table if names else Text("no worker yet", style="dim")


def _evaluation_text(evaluation: Mapping[str, Any], separator: str = "   ") -> str:
    parts = sorted(evaluation["splits"].items(), key=lambda part: (part[0] != "all", part[0]))
    return separator.join(
        [f"step {evaluation['step']}", *(f"{name} {format_accuracy(accuracy)}" for name, accuracy in parts)]
    )


def sparkline(values: Sequence[float]) -> str:
    """One block per value, between the smallest and the largest of them."""
    finite = [v for v in values if v is not None and v == v]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((v - low) * scale)] for v in finite)
