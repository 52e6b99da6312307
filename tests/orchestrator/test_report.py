import asyncio
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from orchestrator import plots
from orchestrator.report import NO_DATA, write_comparison, write_report
from orchestrator.run_history import RunHistory
from orchestrator.summary import NoSummaryError, read_config, read_summary, summary_sections
from tests.orchestrator.run_driver import NUM_STEPS, RunDriver, drive_run

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Text, table rows, ids, addresses, and the path data under each drawn series; tags must balance."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.rows, self.ids, self.addresses, self.titles = "", [], [], [], []
        self.series: dict[str, list[str]] = {}
        self._open: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if "id" in values:
            self.ids.append(values["id"])
        self.addresses += [v for k, v in attrs if k in ("href", "src", "xlink:href") and v]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self._open.append((tag, values.get("id") or ""))
        inside = next((name for _, name in reversed(self._open) if "series:" in name), None)
        if inside is not None:
            shapes = self.series.setdefault(inside.partition("series:")[2], [])
            if tag == "path" and not any(name == "defs" for name, _ in self._open):
                shapes.append(values["d"])

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        name, _ = self._open.pop()
        assert name == tag

    def handle_data(self, data):
        self.text += data
        tags = [tag for tag, _ in self._open]
        if tags and tags[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        if tags and tags[-1] == "h2":
            self.titles.append(data)


def page_of(run_dir) -> Page:
    return Page(write_report(run_dir).read_text())


def numbers_in(value) -> list:
    if isinstance(value, dict):
        return [n for item in value.values() for n in numbers_in(item)]
    if isinstance(value, list):
        return [n for item in value for n in numbers_in(item)]
    return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


def points(path: str) -> np.ndarray:
    return np.array([[float(x) for x in pair.split()] for pair in re.findall(r"[ML] ?(-?[\d.]+ -?[\d.]+)", path)])


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A driven run with its report; not written to."""
    run_dir = tmp_path_factory.mktemp("runs") / "run-1"
    with pytest.MonkeyPatch.context() as patch:
        asyncio.run(drive_run(run_dir, patch))
    write_report(run_dir)
    return run_dir


@pytest.fixture(scope="module")
def page(run_dir):
    return Page((run_dir / "report.html").read_text())


def test_every_number_of_the_summary_is_on_the_page(run_dir, page):
    summary = read_summary(run_dir)
    raw = set(re.findall(r"-?\d+\.?\d*(?:e[+-]?\d+)?", page.text))
    missing = [n for n in numbers_in(summary) if json.dumps(n) not in raw]
    assert missing == []
    shown = [tuple(row) for row in page.rows]
    for section in summary_sections(summary, read_config(run_dir), run_dir):
        for row in section.rows:
            assert row in shown, (section.title, row)


def test_the_configuration_is_on_the_page(run_dir, page):
    assert json.dumps(read_config(run_dir), indent=2) in page.text


def test_the_page_stands_alone(run_dir, page):
    assert all(address.startswith("#") for address in page.addresses)
    assert len(page.ids) == len(set(page.ids))
    assert {address[1:] for address in page.addresses} <= set(page.ids)
    text = (run_dir / "report.html").read_text()
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_no_plot_is_empty(page):
    assert page.titles == [
        "Results", "Learning", "Optimisation", "Term live/clipped_surrogate", "Term expert/negative_log_likelihood",
        "Learner against engine", "Policy age", "Time", "Throughput", "Verdicts", "Dropped groups",
        "Settings and numbers",
    ]  # fmt: skip
    assert NO_DATA not in page.text
    lines = {
        "reward_mean", "reward_smoothed", "accuracy:all", "accuracy:covered", "accuracy:uncovered", "loss", "grad_norm",
        "learning_rate", "policy_age_mean", "policy_age_max", "train_s", "lease_wait_s", "rate:trained",
        "rate:computed", "rate:rollout-0", "rate:rollout-1",
    }  # fmt: skip
    live = ("mismatch_mean", "mismatch_max", "ratio_mean", "effective_sample_fraction", "chi2", "clip_fraction",
            "loss", "weight", "num_tokens")  # fmt: skip
    expert = ("loss", "weight", "num_tokens", "nll_mean", "token_weight_mean")
    lines |= {f"live/clipped_surrogate/{name}" for name in live}
    lines |= {f"expert/negative_log_likelihood/{name}" for name in expert}
    bars = {"age:0", "age:1", "time:learner:train", "time:learner:wait_for_batch", "time:learner:publish",
            "time:learner:other", "time:step:forward", "time:step:backward", "time:step:optimizer", "time:step:other",
            "time:rollout:engine_busy", "time:rollout:engine_idle", "count:scored",
            "count:no_answer", "count:infra_error", "count:rule:_constant_score",
            "count:replay:_live_too_old_<=64_tokens", "count:replay:_live_wrong_length_<=64_tokens"}  # fmt: skip
    assert set(page.series) == lines | bars
    for name in lines:
        drawn = points(page.series[name][0])
        assert len(drawn) >= 3, name
        assert np.ptp(drawn[:, 0]) > 100, name  # over the width of its panel
    for name in bars:
        drawn = points(page.series[name][0])
        assert np.ptp(drawn[:, 0]) > 0, name
        assert np.ptp(drawn[:, 1]) > 0, name


def test_bars_are_as_long_as_what_they_count(page):
    length = {name: np.ptp(points(paths[0])[:, 0]) for name, paths in page.series.items() if name.startswith("count:")}
    assert length["count:scored"] / length["count:no_answer"] == pytest.approx(70 / 9, rel=1e-3)
    height = [np.ptp(points(page.series[f"age:{age}"][0])[:, 1]) for age in (0, 1)]
    assert height[0] / height[1] == pytest.approx(6 / 4, rel=1e-3)


def test_a_step_without_a_finite_number_is_a_gap_in_no_other_step(page):
    assert len(points(page.series["grad_norm"][0])) == NUM_STEPS - 1
    assert len(points(page.series["loss"][0])) == NUM_STEPS


async def test_a_run_that_is_interrupted_early_has_a_page_that_says_what_is_missing(tmp_path, monkeypatch):
    driver = RunDriver(tmp_path, monkeypatch)
    await driver.begin()
    await driver.train(1, 1)
    driver.recorder.phase("failed")
    driver.recorder.write_summary()
    driver.recorder.close()
    page = page_of(tmp_path)
    assert f"failed at step 1 of {NUM_STEPS}" in page.text
    assert "loss" in page.series  # a single point is still drawn


async def test_a_run_that_never_trained_has_a_page(tmp_path, monkeypatch):
    driver = RunDriver(tmp_path, monkeypatch)
    driver.recorder.phase("failed")
    driver.recorder.write_summary()
    driver.recorder.close()
    page = page_of(tmp_path)
    assert page.series == {}
    assert page.text.count(NO_DATA) == 8  # all figures but those of terms, which it does not know


async def test_names_are_escaped(tmp_path, monkeypatch):
    driver = RunDriver(tmp_path / "<b>run & co", monkeypatch, name="<script>alert(1)</script>")
    driver.recorder.write_summary()
    driver.recorder.close()
    text = write_report(driver.run_dir).read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<script" not in text
    assert "<b>" not in text


def test_a_folder_without_a_run_gets_no_page(tmp_path):
    with pytest.raises(NoSummaryError):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


# -- several runs -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def six_runs(tmp_path_factory):
    folder, runs = tmp_path_factory.mktemp("six"), []
    with pytest.MonkeyPatch.context() as patch:
        for name, gain in (("chord", 0.6), ("grpo", 0.3)):
            for seed in range(3):
                runs.append(folder / f"{name}-{seed}")
                asyncio.run(drive_run(runs[-1], patch, name=name, seed=seed, gain=gain + 0.05 * seed))
    return runs


def svg_series(path) -> dict[str, np.ndarray]:
    found = {}
    for group in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}g"):
        if group.get("id", "").startswith("series:"):
            shape = group.find("{http://www.w3.org/2000/svg}path")
            found[group.get("id").removeprefix("series:")] = points(shape.get("d"))
    return found


def test_comparison_draws_each_seed_and_their_mean_by_split(six_runs, tmp_path):
    path = write_comparison(six_runs, tmp_path / "compare.svg", labels={"grpo": "expert off"})
    series = svg_series(path)
    names = ["0", "1", "2", "mean"]
    assert set(series) == {
        f"{s}:{g}:{n}" for s in ("covered", "uncovered") for g in ("chord", "expert_off") for n in names
    }
    for split in ("covered", "uncovered"):
        for group in ("chord", "expert_off"):
            seeds = [series[f"{split}:{group}:{n}"] for n in "012"]
            assert np.allclose(np.mean(seeds, axis=0), series[f"{split}:{group}:mean"], atol=1e-3)
    text = path.read_text()
    assert "expert off (3 seeds)" in text
    assert "held-out: uncovered" in text


def test_comparison_over_minutes_of_training(six_runs):
    figure = plots.comparison_figure({"chord": [RunHistory.load(run) for run in six_runs[:3]]}, over="minutes")
    (line, *_) = figure.axes[0].get_lines()
    wall_s = [e["wall_s"] for e in RunHistory.load(six_runs[0]).evaluations]
    assert line.get_xdata() == pytest.approx([w / 60 for w in wall_s])
    assert figure.axes[0].get_xlabel() == "minutes of training"


def test_comparison_as_a_picture(six_runs, tmp_path):
    path = write_comparison(six_runs[:1], tmp_path / "compare.png", splits=["all"])
    assert path.read_bytes().startswith(b"\x89PNG")


async def test_comparison_of_runs_that_were_never_evaluated_is_refused(tmp_path, monkeypatch):
    driver = RunDriver(tmp_path, monkeypatch)
    driver.recorder.write_summary()
    driver.recorder.close()
    with pytest.raises(ValueError, match="nothing to compare"):
        write_comparison([tmp_path], tmp_path / "compare.svg")


def test_the_mean_of_curves_is_taken_where_all_of_them_are():
    x, y = plots.mean_curve([([0.0, 10.0, 20.0], [0.0, 1.0, 2.0]), ([5.0, 15.0], [1.0, 1.0])])
    assert x == [5.0, 10.0, 15.0]
    assert y == pytest.approx([0.75, 1.0, 1.25])


def test_smoothing_keeps_a_line_straight_and_its_length():
    assert plots.smoothed([2.0] * 20) == [2.0] * 20
    assert plots.smoothed([0.0, 9.0], window=3) == [4.5, 4.5]


def test_rates_of_bursts_are_averages_over_time():
    rows = [{"time": 1000.0 + 5 * i, "step": 0, "generated_tokens": 600.0 * (i // 6)} for i in range(361)]
    history = RunHistory(Path("nowhere"), {}, {}, {"rollout-0": rows}, [])
    (minutes, rates) = history.worker_rate("generated_tokens")["rollout-0"]
    assert rates == [20.0] * 60  # a burst of 600 tokens every 30 s
    assert minutes[-1] == 30.0
