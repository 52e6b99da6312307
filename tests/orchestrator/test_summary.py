import io
import json

import pytest

from orchestrator.summary import (
    NoSummaryError,
    format_accuracy,
    format_number,
    format_seconds,
    print_summary,
    read_config,
    read_summary,
    summary_sections,
)
from tests.orchestrator.run_driver import NUM_STEPS, RunDriver, drive_run


@pytest.fixture
async def sections(tmp_path, monkeypatch):
    """Title to rows of a driven run, each row by its first cell."""
    run_dir = tmp_path / "run-1"
    await drive_run(run_dir, monkeypatch)
    (run_dir / "report.html").touch()
    found = summary_sections(read_summary(run_dir), read_config(run_dir), run_dir)
    return {section.title: section for section in found}


def rows(section):
    return {row[0]: row[1:] for row in section.rows}


async def test_accuracy_before_and_after_by_split(sections, tmp_path):
    section = sections["Held-out accuracy"]
    summary = read_summary(tmp_path / "run-1")
    before, after = summary["before"]["covered"], summary["after"]["covered"]
    assert list(rows(section)) == ["all", "covered", "uncovered"]
    assert rows(section)["covered"] == (
        f"{before['accuracy']:.3f} [{before['low']:.3f}, {before['high']:.3f}]",
        f"{after['accuracy']:.3f} [{after['low']:.3f}, {after['high']:.3f}]",
        f"{after['accuracy'] - before['accuracy']:+.3f}",
        "150",
    )


async def test_time_rates_ages_drops_and_places(sections, tmp_path):
    learner = rows(sections["Where the learner's time went"])
    assert list(learner) == ["train", "wait for batch", "publish", "checkpoint", "other"]
    assert sum(float(share.rstrip("%")) for _, share in learner.values()) == pytest.approx(100, abs=0.3)
    steps = rows(sections["Where the optimizer steps' time went"])
    assert list(steps) == ["forward", "backward", "optimizer", "other"]
    assert steps["backward"][0] == "24.00 s"
    engines = rows(sections["Where the engines' time went"])
    assert engines["engine busy"] == ("1 min 41 s", "84.0%")
    assert rows(sections["Tokens per second"])["sampled, while an engine was busy"] == ("333.3",)
    age = sections["Policy age of live groups at hand-out"]
    assert rows(age) == {"0": (f"{6 * NUM_STEPS}", "60.0%"), "1": (f"{4 * NUM_STEPS}", "40.0%")}
    assert age.note == "At most 1 allowed; 0 violations."
    assert rows(sections["Groups dropped"])["rule: constant_score"][0] == f"{2 * NUM_STEPS}"
    assert rows(sections["Verdicts"])["no_answer"] == ("216", "11.4%")
    assert rows(sections["Activation of new weights"])["load"] == ("150 ms", "150 ms")
    places = rows(sections["Files"])
    assert places["report"] == (str(tmp_path / "run-1" / "report.html"),)
    assert places["model"] == (str(tmp_path / "run-1" / "model"),)
    assert "checkpoints" not in places  # there are none


async def test_a_violated_bound_is_seen(tmp_path, monkeypatch):
    summary = {**await drive_run(tmp_path, monkeypatch), "age_violations": 3}
    section = next(s for s in summary_sections(summary, read_config(tmp_path), tmp_path) if "age" in s.title)
    assert "3 violations" in section.note


async def test_a_run_that_never_trained_still_has_a_table(tmp_path, monkeypatch):
    driver = RunDriver(tmp_path, monkeypatch)
    driver.recorder.phase("failed")
    driver.recorder.write_summary()
    driver.recorder.close()
    output = io.StringIO()
    print_summary(tmp_path, output)
    assert "failed" in output.getvalue()
    titles = [s.title for s in summary_sections(read_summary(tmp_path), read_config(tmp_path), tmp_path)]
    assert titles == ["Run"]


async def test_every_cell_is_printed_and_nothing_is_read_as_markup(tmp_path, monkeypatch):
    run_dir = tmp_path / "run-1"
    await drive_run(run_dir, monkeypatch)
    summary = read_summary(run_dir)
    summary["warnings"] = ["sink [bold]x[/bold] is off"]
    (run_dir / "summary.json").write_text(json.dumps(summary))
    monkeypatch.setenv("COLUMNS", "200")
    output = io.StringIO()
    print_summary(run_dir, output)
    text = output.getvalue()
    assert "\x1b" not in text
    assert "sink [bold]x[/bold] is off" in text
    for section in summary_sections(summary, read_config(run_dir), run_dir):
        assert section.title in text
        for row in section.rows:
            for cell in row:
                assert cell in text


def test_a_folder_without_a_run_is_one_clear_error(tmp_path):
    with pytest.raises(NoSummaryError, match=r"holds no summary\.json"):
        print_summary(tmp_path)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (float("nan"), "–"), (0.0, "0"), (12345.0, "12,345"), (1234.6, "1,235"), (0.43211, "0.4321"),
     (3.2e-05, "3.2e-05"), (-2.5, "-2.5")],
)  # fmt: skip
def test_numbers(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0.00 s"), (0.0123, "12.3 ms"), (0.9996, "1.00 s"), (59.5, "59.50 s"), (59.999, "1 min 00 s"),
     (125.2, "2 min 05 s"), (3599.9, "1 h 00 min"), (3720, "1 h 02 min")],
)  # fmt: skip
def test_seconds(value, text):
    assert format_seconds(value) == text


def test_accuracy_of_nothing_is_a_dash():
    assert format_accuracy({"accuracy": None, "low": 0.0, "high": 1.0}) == "–"
    assert format_accuracy({"accuracy": 0.5, "low": 0.25, "high": 0.75}) == "0.500 [0.250, 0.750]"
