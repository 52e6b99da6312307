"""The figures of a report and the comparison of several runs; a figure is None where there is nothing to draw.

Every drawn series has a group id `series:<name>` in the SVG, so that a reader or a test can find it.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from orchestrator.run_history import RunHistory, Series
from rewards.statistics import Estimate

COLOURS = (
    "#2563a8", "#c2571a", "#2f8f5b", "#8a4fa3", "#a3283c", "#5b6b7a", "#b8860b", "#1f8a9c",
    "#7fa8d6", "#e3a373", "#8cc7a5", "#c2a3d1",
)  # fmt: skip
"""Readable on white and apart from each other also without colour vision, in this order."""

REST = "#b4bec8"
"""Colour of what has no name of its own."""

STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "font.size": 9,
    "axes.formatter.useoffset": False,
    "svg.fonttype": "none",
}

_styled = mpl.rc_context(STYLE)
"""Decorator of functions that draw."""

RATIO_METRICS = (
    "mismatch_mean",
    "mismatch_max",
    "ratio_mean",
    "effective_sample_fraction",
    "chi2",
    "clip_fraction",
)
"""Metrics of a term that compare the learner with the policy that sampled."""

PANEL_WIDTH, PANEL_HEIGHT = 3.0, 2.1
"""Inches of one small panel."""


@_styled
def learning_figure(run: RunHistory) -> Figure | None:
    """Reward of live samples, and held-out accuracy by split with its intervals, over steps."""
    steps, rewards = run.learner("reward_mean")
    splits = [split for split in run.splits if run.accuracy(split)]
    if not steps and not splits:
        return None
    figure, axes = _panels(1, int(bool(steps)) + int(bool(splits)), width=5.2, height=3.2)
    remaining = list(axes)
    if steps:
        axis = remaining.pop(0)
        _line(axis, "reward_mean", steps, rewards, COLOURS[0], alpha=0.35 if len(steps) > 8 else 1.0)
        if len(steps) > 8:
            _line(axis, "reward_smoothed", steps, smoothed(rewards), COLOURS[0], linewidth=2.0, label="smoothed")
            axis.legend()
        _label(axis, "Mean reward of live samples", "step", "reward")
    if splits:
        axis = remaining.pop(0)
        for index, split in enumerate(splits):
            points = run.accuracy(split)
            x, y = [float(p.step) for p in points], [p.value for p in points]
            errors = [[p.value - p.low for p in points], [p.high - p.value for p in points]]
            colour = COLOURS[index % len(COLOURS)]
            container = axis.errorbar(
                x, y, yerr=errors, color=colour, marker="o", ms=3.5, capsize=2, lw=1.5, label=split
            )
            container.lines[0].set_gid(_gid(f"accuracy:{split}"))
        axis.set_ylim(-0.02, 1.02)
        axis.legend()
        _label(axis, "Held-out accuracy with 95 % intervals", "step", "share right")
    return figure


@_styled
def optimisation_figure(run: RunHistory) -> Figure | None:
    """Loss, gradient norm and learning rate over steps."""
    names = {"loss": "Loss (weighted sum of the terms)", "grad_norm": "Gradient norm before clipping",
             "learning_rate": "Learning rate"}  # fmt: skip
    return _small_multiples({title: {name: run.learner(name)} for name, title in names.items()})


@_styled
def term_figure(run: RunHistory, label: str) -> Figure | None:
    """What one loss term reports, apart from its comparison with the sampling policy."""
    names = [name for name in run.term_metrics()[label] if name not in (*RATIO_METRICS, "num_sequences")]
    return _small_multiples(
        {name.replace("_", " "): {f"{label}/{name}": run.learner(f"term/{label}/{name}")} for name in names}
    )


@_styled
def ratio_figure(run: RunHistory) -> Figure | None:
    """Learner against sampling policy: log-prob mismatch, ratios, effective samples, for each term that has them."""
    titles = {
        "mismatch_mean": "Mean |learner − engine| log-prob (nats)",
        "mismatch_max": "Largest |learner − engine| (nats)",
        "ratio_mean": "Mean importance ratio",
        "effective_sample_fraction": "Effective share of samples",
        "chi2": "Mean squared ratio − 1",
        "clip_fraction": "Share of clipped tokens",
    }
    panels = {}
    for name, title in titles.items():
        series = {
            label: run.learner(f"term/{label}/{name}")
            for label, metrics in run.term_metrics().items()
            if name in metrics
        }
        panels[title] = {f"{label}/{name}": points for label, points in series.items()}
    return _small_multiples(panels)


@_styled
def age_figure(run: RunHistory) -> Figure | None:
    """Histogram of ages at hand-out with the bound, and mean and largest age over steps."""
    histogram = run.summary["age_histogram"]
    if not histogram:
        return None
    bound = run.config.get("replay", {}).get("max_age")
    figure, (left, right) = _panels(1, 2, width=5.2, height=2.8)
    ages = [int(age) for age in histogram]
    bars = left.bar(ages, list(histogram.values()), color=COLOURS[0], width=0.7)
    for patch, age in zip(bars, ages, strict=True):
        patch.set_gid(_gid(f"age:{age}"))
    left.bar_label(bars, fontsize=8, padding=1)
    left.margins(y=0.15)
    if bound is not None:
        left.axvline(bound + 0.5, color=COLOURS[4], linestyle="--", label=f"bound: {bound}")
        left.legend()
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    _label(left, "Age of live groups at hand-out", "committed steps", "groups")
    if bound is not None:
        right.axhline(bound, color=COLOURS[4], linewidth=5, alpha=0.25, label="bound")
    _line(right, "policy_age_mean", *run.learner("policy_age_mean"), COLOURS[0], label="mean")
    _line(right, "policy_age_max", *run.learner("policy_age_max"), COLOURS[1], label="largest")
    right.set_ylim(bottom=0)
    right.legend()
    _label(right, "Age over the run", "step", "committed steps")
    return figure


@_styled
def time_figure(run: RunHistory) -> Figure | None:
    """Where the time of learner, optimizer steps and engines went, and the learner's seconds of each step."""
    rows = {
        role: {name: s for name, s in parts.items() if s > 0 and name != "new weights"}
        for role, parts in run.summary["time_s"].items()
    }
    rows = {role: parts for role, parts in rows.items() if parts}
    if not rows:
        return None
    figure, (left, right) = _panels(1, 2, width=5.2, height=3.2)
    names = list(
        dict.fromkeys(name for parts in rows.values() for name in parts if name not in ("other", "engine idle"))
    )
    colour_of = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    for y, (role, parts) in enumerate(rows.items()):
        whole, start = sum(parts.values()), 0.0
        for name, seconds in parts.items():
            share = seconds / whole
            (patch,) = left.barh(y, share, left=start, color=colour_of.get(name, REST), height=0.55)
            patch.set_gid(_gid(f"time:{role}:{name}"))
            if share >= 0.1:
                left.text(start + share / 2, y, f"{share:.0%}", ha="center", va="center", color="white", fontsize=8)
            start += share
    left.set_yticks(range(len(rows)), list(rows))
    left.set_xlim(0, 1)
    left.set_ylim(-0.5, len(rows) - 0.5)
    left.invert_yaxis()
    left.grid(visible=False)
    handles = [Patch(color=colour, label=name) for name, colour in {**colour_of, "other, idle": REST}.items()]
    left.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=4, columnspacing=1.0)
    _label(left, "Shares of the time of learner, optimizer steps, engines", "", "")
    for index, (name, label) in enumerate((("train_s", "step"), ("lease_wait_s", "wait for batch"))):
        _line(right, name, *run.learner(name), COLOURS[index], label=label)
    right.set_ylim(bottom=0)
    right.legend()
    _label(right, "Learner's seconds per step", "step", "s")
    return figure


@_styled
def rate_figure(run: RunHistory) -> Figure | None:
    """Tokens per second of the learner by step, and of each rollout worker over time."""
    learner = {
        "trained": run.learner_rate("trained_tokens", "train_s"),
        "computed": run.learner_rate("computed_tokens", "train_s"),
    }
    workers = run.worker_rate("generated_tokens")
    panels: dict[str, tuple[str, Mapping[str, Series]]] = {
        "Learner, per second of optimizer steps": ("step", {k: s for k, s in learner.items() if s[0]}),
        "Sampled by the engines": ("minutes since the run's first report", workers),
    }
    panels = {title: panel for title, panel in panels.items() if panel[1]}
    if not panels:
        return None
    figure, axes = _panels(1, len(panels), width=5.2, height=2.8)
    for axis, (title, (x_label, series)) in zip(axes, panels.items(), strict=True):
        for index, (name, points) in enumerate(series.items()):
            _line(axis, f"rate:{name}", *points, COLOURS[index % len(COLOURS)], label=name)
        axis.set_ylim(bottom=0)
        if len(series) <= len(COLOURS):
            axis.legend()
        _label(axis, title, x_label, "tokens/s")
    return figure


@_styled
def count_figure(title: str, counts: Mapping[str, int]) -> Figure | None:
    """Horizontal bars with their numbers."""
    counts = {name: count for name, count in counts.items() if count}
    if not counts:
        return None
    figure, (axis,) = _panels(1, 1, width=7.0, height=0.9 + 0.32 * len(counts))
    bars = axis.barh(list(counts), list(counts.values()), color=COLOURS[0], height=0.6)
    for patch, name in zip(bars, counts, strict=True):
        patch.set_gid(_gid(f"count:{name}"))
    axis.bar_label(bars, fmt="{:,.0f}", fontsize=8, padding=3)
    axis.margins(x=0.12)
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    _label(axis, title, "", "")
    return figure


@_styled
def comparison_figure(
    groups: Mapping[str, Sequence[RunHistory]], *, over: str = "step", splits: Sequence[str] | None = None
) -> Figure:
    """Held-out accuracy of groups of runs: each seed a thin line, the mean over seeds a thick one.

    Args:
        groups: runs that differ only in their seed, by the name to show.
        over: step or minutes (training wall clock).
        splits: parts of the held-out tasks, one panel each; all but the whole when there are parts.

    Raises:
        ValueError: no run has a held-out accuracy.
    """
    known = list(dict.fromkeys(split for runs in groups.values() for run in runs for split in run.splits))
    chosen = list(splits) if splits is not None else [s for s in known if s != "all"] or known
    if not any(run.accuracy(split) for runs in groups.values() for run in runs for split in chosen):
        raise ValueError(f"no run has a held-out accuracy for any of {chosen}; nothing to compare")
    figure, axes = _panels(1, len(chosen), width=4.6, height=3.4, sharey=True)
    for axis, split in zip(axes, chosen, strict=True):
        for index, (name, runs) in enumerate(groups.items()):
            colour = COLOURS[index % len(COLOURS)]
            curves = [_curve(run, split, over) for run in runs if run.accuracy(split)]
            for number, (x, y) in enumerate(curves):
                _line(axis, f"{split}:{name}:{number}", x, y, colour, linewidth=0.9, alpha=0.45)
            if curves:
                x, y = mean_curve(curves)
                text = f"{name} ({len(curves)} {'seed' if len(curves) == 1 else 'seeds'})"
                _line(axis, f"{split}:{name}:mean", x, y, colour, linewidth=2.4, label=text)
        axis.set_ylim(-0.02, 1.02)
        _label(axis, f"held-out: {split}", "step" if over == "step" else "minutes of training", "")
    axes[0].set_ylabel("share right")
    axes[0].legend(loc="best")
    return figure


def mean_curve(curves: Sequence[Series]) -> Series:
    """The mean of several lines where all of them exist, at every x any of them has; linear in between."""
    low, high = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    grid = sorted({value for x, _ in curves for value in x if low <= value <= high})
    return grid, np.mean([np.interp(grid, x, y) for x, y in curves], axis=0).tolist()


def smoothed(values: Sequence[float], window: int = 9) -> list[float]:
    """Centred moving mean; shorter at both ends."""
    half = window // 2
    return [float(np.mean(values[max(0, i - half) : i + half + 1])) for i in range(len(values))]


@_styled
def to_svg(figure: Figure, prefix: str) -> str:
    """An <svg> element to stand in a page; `prefix` keeps its ids apart from those of other figures."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    return re.sub(r'(url\(|href=")#', rf"\1#{prefix}-", text)


def _curve(run: RunHistory, split: str, over: str) -> Series:
    points = run.accuracy(split)
    return [float(p.step) if over == "step" else p.minutes for p in points], [p.value for p in points]


def _small_multiples(panels: Mapping[str, Mapping[str, Series]]) -> Figure | None:
    """One small panel per title with the lines in it; panels without a point are left out."""
    drawn = {title: {n: s for n, s in series.items() if s[0]} for title, series in panels.items()}
    drawn = {title: series for title, series in drawn.items() if series}
    if not drawn:
        return None
    columns = min(3, len(drawn))
    figure, axes = _panels(math.ceil(len(drawn) / columns), columns, width=PANEL_WIDTH + 0.4, height=PANEL_HEIGHT)
    for axis, (title, series) in zip(axes, drawn.items(), strict=False):
        for index, (name, points) in enumerate(series.items()):
            text = name.rpartition("/")[0] if len(series) > 1 else None
            _line(axis, name, *points, COLOURS[index % len(COLOURS)], label=text)
        if len(series) > 1:
            axis.legend()
        _label(axis, title, "step", "")
    for axis in axes[len(drawn) :]:
        axis.remove()
    return figure


def _panels(rows: int, columns: int, *, width: float, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure with panels of this size in inches, row by row."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.flat)


def _line(
    axis: Axes,
    name: str,
    x: Sequence[float],
    y: Sequence[float],
    colour: str,
    *,
    label: str | None = None,
    **style: Any,
) -> None:
    """A line, or dots where it has few points."""
    marker = "o" if len(x) <= 8 else ""
    style = {"linewidth": 1.5, "marker": marker, "markersize": 3.5, **style}
    (line,) = axis.plot(x, y, color=colour, label=label, **style)
    line.set_gid(_gid(f"{name}"))


def _gid(name: str) -> str:
    return "series:" + re.sub(r"[^\w:./#<=-]+", "_", name)


def _label(axis: Axes, title: str, x_label: str, y_label: str) -> None:
    axis.set_title(title, loc="left")
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)


@_styled
def pass_at_figure(curves: Mapping[str, Mapping[str, Sequence[Mapping[int, float]]]]) -> Figure | None:
    """pass@k over k, one panel per task set: each run a thin line, the mean of a setting a thick one.

    Args:
        curves: task set to setting to k to value, one mapping per run.
    """
    if not curves:
        return None
    figure, axes = _panels(1, len(curves), width=4.6, height=3.4, sharey=True)
    for axis, (task_set, settings) in zip(axes, curves.items(), strict=True):
        for index, (setting, runs) in enumerate(settings.items()):
            colour = COLOURS[index % len(COLOURS)]
            series = [(list(map(float, run)), list(run.values())) for run in runs if run]
            for number, (x, y) in enumerate(series):
                _line(axis, f"{task_set}:{setting}:{number}", x, y, colour, linewidth=0.9, alpha=0.45)
            if series:
                x, y = mean_curve(series)
                _line(axis, f"{task_set}:{setting}:mean", x, y, colour, linewidth=2.4, label=setting)
        axis.set_ylim(-0.02, 1.02)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        _label(axis, task_set, "k", "")
    axes[0].set_ylabel("pass@k")
    axes[0].legend(loc="best")
    return figure


@_styled
def interval_figure(estimates: Mapping[str, Mapping[str, Estimate]]) -> Figure | None:
    """Estimates with their intervals: one panel per measure, one row per setting."""
    if not estimates:
        return None
    settings = list(next(iter(estimates.values())))
    figure, axes = _panels(1, len(estimates), width=PANEL_WIDTH, height=0.9 + 0.35 * len(settings), sharey=True)
    for axis, (name, values) in zip(axes, estimates.items(), strict=True):
        for index, (setting, e) in enumerate(values.items()):
            errors = [[e.value - e.low], [e.high - e.value]]
            colour = COLOURS[index % len(COLOURS)]
            drawn = axis.errorbar([e.value], [index], xerr=errors, fmt="o", ms=5, capsize=3, lw=2, color=colour)
            drawn.lines[0].set_gid(_gid(f"{name}:{setting}"))
        axis.set_yticks(range(len(settings)), settings)
        axis.set_ylim(len(settings) - 0.5, -0.5)
        _label(axis, name, "", "")
    return figure


@_styled
def profile_figure(levels: Sequence[float], profiles: Mapping[str, Sequence[Estimate]]) -> Figure | None:
    """Share of scores above each level, with pointwise 95 % bands."""
    if not profiles:
        return None
    figure, (axis,) = _panels(1, 1, width=5.6, height=3.4)
    for index, (setting, shares) in enumerate(profiles.items()):
        colour = COLOURS[index % len(COLOURS)]
        _line(axis, f"profile:{setting}", levels, [e.value for e in shares], colour, label=setting)
        axis.fill_between(levels, [e.low for e in shares], [e.high for e in shares], color=colour, alpha=0.15)
    axis.set_ylim(-0.02, 1.02)
    axis.legend(loc="best")
    _label(axis, "Performance profile", "score", "share of runs above it")
    return figure
