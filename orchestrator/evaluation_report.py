"""write_evaluation: one self-contained HTML page about several models on several task sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from orchestrator import plots
from orchestrator.contamination import Probe
from orchestrator.evaluation_grid import PROFILE_LEVELS, Cell, Comparison, compare
from orchestrator.report import html_figure, html_page, html_table
from orchestrator.summary import Section
from rewards.statistics import Estimate


def write_evaluation(path: Path, cells: Sequence[Cell], note: str, probes: Mapping[str, Sequence[Probe]]) -> Path:
    """Writes the page.

    Args:
        note: how the models were asked.
        probes: signs of contamination by model and task set, where they were looked for.

    Raises:
        ValueError: cells that cannot be compared, see `evaluation_grid.compare`.
    """
    comparison = compare(cells)
    sections = [*_result_sections(cells), *_comparison_sections(comparison), *_probe_sections(probes)]
    tables = "\n".join(html_table(section) for section in sections)
    body = f'<div class="tables">{tables}</div>\n' + "\n".join(_figures(cells, comparison))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html_page("Evaluation", note, body), encoding="utf-8")
    return path


def _result_sections(cells: Sequence[Cell]) -> Iterator[Section]:
    """One table per task set: a row per model and part, a column per measure."""
    for task_set in dict.fromkeys(cell.task_set for cell in cells):
        chosen = [cell for cell in cells if cell.task_set == task_set]
        measures = _measures(chosen)
        rows = []
        for cell in chosen:
            for split, result in cell.results.items():
                found = {f"pass@{k}": e for k, e in result.pass_at.items()}
                found |= {f"maj@{k}": e for k, e in result.majority_at.items()}
                found |= {f"CoT-pass@{k}": e for k, e in result.cot_pass_at.items()}
                values = (_interval(found[name]) if name in found else "" for name in measures)
                rows.append((f"{cell.target} · {split}", *values, str(result.num_tasks), str(result.unscored)))
        headings = ("model · tasks", *measures, "tasks", "unscored samples")
        yield Section(task_set, headings, tuple(rows), note="Mean over tasks with its 95 % interval.")


def _measures(cells: Sequence[Cell]) -> list[str]:
    results = [result for cell in cells for result in cell.results.values()]
    return list(
        dict.fromkeys(
            [f"pass@{k}" for result in results for k in result.pass_at]
            + [f"maj@{k}" for result in results for k in result.majority_at]
            + [f"CoT-pass@{k}" for result in results for k in result.cot_pass_at]
        )
    )


def _comparison_sections(comparison: Comparison) -> Iterator[Section]:
    names = list(next(iter(comparison.aggregates.values())))
    rows = tuple(
        (setting, *(_interval(estimates[name]) for name in names), str(len(comparison.scores[setting])))
        for setting, estimates in comparison.aggregates.items()
    )
    yield Section(
        "Over all task sets",
        ("setting", *names, "runs"),
        rows,
        note=f"Of pass@{comparison.k}, with 95 % intervals of the stratified bootstrap over runs. Of one run the "
        "interval has no width: it says nothing about the next run.",
    )
    if comparison.improvements:
        yield Section(
            "Probability of improvement",
            ("A better than B", "probability"),
            tuple((f"{a} > {b}", _interval(e)) for (a, b), e in comparison.improvements.items()),
            note="That a run of A beats a run of B on a task set drawn at random; ties count one half.",
        )


def _probe_sections(probes: Mapping[str, Sequence[Probe]]) -> Iterator[Section]:
    for name, found in probes.items():
        if found:
            rows = tuple((probe.name, _interval(probe.ours), _interval(probe.twins), probe.reading) for probe in found)
            yield Section(
                f"Signs of contamination: {name}",
                ("probe", "held-out tasks", "fresh twins", "reading"),
                rows,
                note="Twins come from the same generator with another seed, so nobody can have seen them.",
                is_numeric=False,
            )


def _figures(cells: Sequence[Cell], comparison: Comparison) -> Iterator[str]:
    curves: dict[str, dict[str, list[dict[int, float]]]] = {}
    for cell in cells:
        values = {k: e.value for k, e in cell.results["all"].pass_at.items()}
        curves.setdefault(cell.task_set, {}).setdefault(cell.setting, []).append(values)
    yield html_figure("pass@k", plots.pass_at_figure(curves), "pass@k over k by task set")
    intervals = _by_aggregate(comparison.aggregates)
    yield html_figure("Aggregates", plots.interval_figure(intervals), "aggregates with intervals by setting")
    profiles: Figure | None = plots.profile_figure(PROFILE_LEVELS, comparison.profiles)
    yield html_figure("Performance profiles", profiles, "share of runs above each score")


def _by_aggregate(aggregates: Mapping[str, Mapping[str, Estimate]]) -> dict[str, dict[str, Estimate]]:
    names = next(iter(aggregates.values()))
    return {name: {setting: estimates[name] for setting, estimates in aggregates.items()} for name in names}


def _interval(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
