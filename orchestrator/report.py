"""write_report: one self-contained HTML page about a run. write_comparison: one plot of several runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Literal

from matplotlib.figure import Figure

from orchestrator import plots
from orchestrator.run_history import RunHistory
from orchestrator.summary import Section, summary_sections
from rewards.telemetry import METRICS

CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; background: #fff; max-width: 70rem; margin: 2rem auto;
       padding: 0 1.5rem; }
h1 { font-size: 1.6rem; margin-bottom: 0.2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 0.6rem; }
h3 { font-size: 0.95rem; margin: 1.2rem 0 0.3rem; }
table { border-collapse: collapse; font-size: 0.88rem; } th, td { padding: 0.2rem 0.9rem 0.2rem 0; text-align: right;
       border-bottom: 1px solid #e3e8ee; vertical-align: top; font-variant-numeric: tabular-nums; }
th { color: #5b6b7a; font-weight: 600; } td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.text td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.meanings td { text-align: left; } .meanings td:last-child { white-space: normal; }
.tables { display: grid; grid-template-columns: repeat(auto-fit, minmax(29rem, 1fr)); gap: 0 3rem; }
.note { color: #5b6b7a; font-size: 0.85rem; margin: 0.3rem 0; } figure { margin: 0.5rem 0 1.2rem; }
svg { max-width: 100%; height: auto; } pre { background: #f5f7fa; padding: 1rem; overflow-x: auto; font-size: 0.8rem; }
details { margin: 1rem 0; } summary { cursor: pointer; font-weight: 600; }
"""

NO_DATA = "This run reported nothing of the kind."


def write_report(run_dir: Path) -> Path:
    """Writes report.html into the folder of a run, finished or not; it needs no other file and no network.

    Raises:
        NoSummaryError: no run lies there.
    """
    run = RunHistory.load(run_dir.resolve())
    path = run.run_dir / "report.html"
    path.touch()  # so that the page lists itself among the files
    path.write_text(render(run), encoding="utf-8")
    return path


def write_comparison(
    run_dirs: Sequence[Path],
    path: Path,
    *,
    over: Literal["step", "minutes"] = "step",
    labels: Mapping[str, str] | None = None,
    splits: Sequence[str] | None = None,
) -> Path:
    """Held-out accuracy of several runs in one plot: runs of one name are seeds of one setting.

    Args:
        path: of the picture; its suffix (svg, png) picks the format.
        over: what runs along the horizontal axis; minutes are training wall clock.
        labels: what to call a name in the legend.
        splits: parts of the held-out tasks to show, one panel each.

    Raises:
        NoSummaryError: one of the folders is no run.
        ValueError: no run was evaluated.
    """
    groups: dict[str, list[RunHistory]] = {}
    for run_dir in run_dirs:
        run = RunHistory.load(run_dir)
        groups.setdefault((labels or {}).get(run.name, run.name), []).append(run)
    figure = plots.comparison_figure(groups, over=over, splits=splits)
    figure.savefig(path, dpi=150)
    return path


def render(run: RunHistory) -> str:
    """The whole page."""
    sections = summary_sections(run.summary, run.config, run.run_dir)
    tables = "\n".join(html_table(section) for section in sections)
    figures = "\n".join(_figure_parts(run))
    details = "\n".join(
        f"<details><summary>{title}</summary><pre>{escape(json.dumps(value, indent=2))}</pre></details>"
        for title, value in (("Resolved configuration", run.config), ("All numbers of the summary", run.summary))
    )
    note = (
        f"{run.name}, model {run.config.get('model', 'unknown')}, {run.summary['phase']} at step {run.summary['step']} "
        f"of {run.summary['num_steps']}"
    )
    body = (
        f'<h2>Results</h2>\n<div class="tables">{tables}</div>\n{figures}\n<h2>Settings and numbers</h2>\n'
        f"{details}\n{_glossary()}"
    )
    return html_page(run.run_dir.name, note, body)


def html_page(title: str, note: str, body: str) -> str:
    """A page that needs no other file; `body` is HTML, the others are text."""
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body>\n"
        f'<h1>{escape(title)}</h1>\n<p class="note">{escape(note)}</p>\n{body}\n</body></html>\n'
    )


def _figure_parts(run: RunHistory) -> Iterator[str]:
    summary = run.summary
    yield html_figure("Learning", plots.learning_figure(run), "reward and held-out accuracy over steps")
    yield html_figure(
        "Optimisation", plots.optimisation_figure(run), "loss, gradient norm and learning rate over steps"
    )
    for label in run.term_metrics():
        yield html_figure(f"Term {label}", plots.term_figure(run, label), f"metrics of the term {label} over steps")
    yield html_figure(
        "Learner against engine",
        plots.ratio_figure(run),
        "log-prob mismatch and importance ratios over steps",
        "Right after an update and without staleness the mismatch is the numerical difference of engine and learner; "
        "with age the policy's own change adds to it.",
    )
    yield html_figure("Policy age", plots.age_figure(run), "ages of live groups at hand-out")
    yield html_figure("Time", plots.time_figure(run), "where the time of learner and engines went")
    yield html_figure("Throughput", plots.rate_figure(run), "tokens per second")
    verdicts = plots.count_figure("Answers by status of their verdict", summary["verdicts"])
    yield html_figure("Verdicts", verdicts, "answers by the status of their verdict")
    yield html_figure(
        "Dropped groups", plots.count_figure("Groups by reason", summary["drops"]), "dropped groups by reason"
    )


def html_figure(title: str, figure: Figure | None, description: str, note: str = "") -> str:
    """A heading with its figure, or with the remark that there is nothing to draw."""
    heading = f"<h2>{escape(title)}</h2>"
    if figure is None:
        return f'{heading}\n<p class="note">{NO_DATA}</p>'
    svg = plots.to_svg(figure, "".join(c if c.isalnum() else "-" for c in title))
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1)
    caption = f'<figcaption class="note">{escape(note)}</figcaption>' if note else ""
    return f"{heading}\n<figure>{svg}{caption}</figure>"


def html_table(section: Section) -> str:
    """A section of a summary as a table."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in section.headings)
    rows = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in section.rows)
    head = f"<thead><tr>{head}</tr></thead>" if any(section.headings) else ""
    note = f'<p class="note">{escape(section.note)}</p>' if section.note else ""
    kind = "" if section.is_numeric else ' class="text"'
    return f"<div><h3>{escape(section.title)}</h3><table{kind}>{head}<tbody>\n{rows}\n</tbody></table>{note}</div>"


def _glossary() -> str:
    """What the metrics in the run's files mean."""
    rows = "\n".join(
        f"<tr><td>{escape(name)}</td><td>{escape(metric.unit)}</td><td>{metric.reduction}</td>"
        f"<td>{escape(metric.meaning)}</td></tr>"
        for name, metric in METRICS.items()
    )
    return (
        "<details><summary>What the metrics mean</summary><table class=meanings><thead><tr><th>metric</th><th>unit</th>"
        f"<th>reduction</th><th>meaning</th></tr></thead><tbody>\n{rows}\n</tbody></table></details>"
    )
