import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import view as view_module
from orchestrator.view import PlainLines, RunView, sparkline
from tests.orchestrator.run_driver import NUM_STEPS, STEP_S, RunDriver

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


class Terminal(io.StringIO):
    """A text file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("LINES", "60")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


def visible(text: str) -> str:
    """What a terminal shows, without colours and cursor movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


async def statuses(run_dir, monkeypatch, *steps: int) -> list[dict]:
    """Of a driven run before the first step and after each of these steps."""
    driver = RunDriver(run_dir, monkeypatch)
    seen = [driver.recorder.status()]
    await driver.begin()
    done = 0
    for step in steps:
        await driver.train(done + 1, step)
        done = step
        seen.append(driver.recorder.status())
    driver.recorder.close()
    return json.loads(json.dumps(seen))


async def test_the_page_shows_every_number_a_reader_looks_for(tmp_path, monkeypatch, wide):
    before, after = await statuses(tmp_path, monkeypatch, 17)
    after["warnings"] = ["tracking sink 'wandb' is off: OSError: [Errno 28]"]
    output = Terminal()
    with RunView(tmp_path, dashboard="http://127.0.0.1:8265", output=output) as view:
        view.update(before)
        assert "no batch yet" in visible(output.getvalue())
        output.truncate(0)
        view.message("stopping after the step in flight")
        view.update(after)
    page = visible(output.getvalue())
    latest = after["latest"]
    for expected in (
        "training", f"step 17/{NUM_STEPS}", "eta 17.50 s", "42.50 s elapsed",
        "http://127.0.0.1:8265", f"{latest['reward_mean']:.4g}", "▁",
        "mean 0.4, max 1 of at most 1 steps; 0 violations",
        f"loss {latest['loss']:.4g}", "sampling", "trained end to end",
        "step 16", "covered 0.", "rollout-1: 9 live groups accepted + 3 running reach the bound of 12",
        "rollout-0", "ready", "11,900", "stopping after the step in flight", "'wandb' is off: OSError: [Errno 28]",
    ):  # fmt: skip
        assert expected in page, expected


async def test_the_estimate_ends_at_the_time_limit(tmp_path, monkeypatch, wide):
    _, status = await statuses(tmp_path, monkeypatch, 17)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "max_minutes": (17 * STEP_S + 5) / 60}))
    output = Terminal()
    with RunView(tmp_path, output=output) as view:
        view.update(status)
    assert "eta 5.00 s" in visible(output.getvalue())


async def test_without_a_terminal_each_step_is_one_line(tmp_path, monkeypatch):
    seen = await statuses(tmp_path, monkeypatch, 1, 2, 8)
    output = io.StringIO()
    with RunView(tmp_path, output=output) as view:
        for status in seen:
            view.update(status)
            view.update(status)  # nothing new
        view.message("stopping")
    lines = output.getvalue().splitlines()
    assert "\x1b" not in output.getvalue()
    assert [" ".join(line.split()[:2]) for line in lines] == [
        "phase starting", "phase training", "step 1/24", "evaluation step", "step 2/24", "step 8/24",
        "evaluation step", "stopping",
    ]  # fmt: skip
    assert f"reward {seen[2]['latest']['reward_mean']:.4g}" in lines[4]
    assert "age 0.4  oldest 1" in lines[4]


async def test_disabled_means_lines_also_on_a_terminal(tmp_path, monkeypatch, wide):
    (status,) = await statuses(tmp_path, monkeypatch)
    output = Terminal()
    with RunView(tmp_path, enabled=False, output=output) as view:
        view.update(status)
    assert output.getvalue() == "phase starting\n"


async def test_a_page_that_cannot_be_drawn_becomes_lines(tmp_path, monkeypatch, wide):
    (status,) = await statuses(tmp_path, monkeypatch)

    def broken(*args):
        raise ZeroDivisionError("no")

    monkeypatch.setattr(view_module, "render_page", broken)
    output = Terminal()
    with RunView(tmp_path, output=output) as view:
        view.update(status)
        view.update(status)
    text = visible(output.getvalue())
    assert text.count("view is reduced to lines: ZeroDivisionError: no") == 1
    assert "phase starting" in text
    assert output.getvalue().count(SHOW) >= output.getvalue().count(HIDE) == 1


def test_a_status_nobody_understands_switches_the_view_off():
    output = io.StringIO()
    with RunView(Path("nowhere"), output=output) as view:
        view.update({"phase": "training"})
        view.update({"phase": "training"})
    assert output.getvalue() == "view is off: KeyError: 'eta_s'\n"


def test_a_reader_that_went_away_does_not_end_the_run():
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    with RunView(Path("nowhere"), output=Closed()) as view:
        view.message("hello")
        view.message("hello")


async def test_a_terminal_that_went_away_does_not_end_the_run(tmp_path, monkeypatch, wide):
    (status,) = await statuses(tmp_path, monkeypatch)

    class Closed(Terminal):
        is_open = True

        def write(self, text):
            if not self.is_open:
                raise BrokenPipeError
            return super().write(text)

    output = Closed()
    with RunView(tmp_path, output=output) as view:
        view.update(status)
        output.is_open = False
        view.update(status)
        view.update(status)


def test_new_evaluations_are_told_again_after_a_run_went_back():
    def status(*steps, warnings=()):
        splits = {"all": {"n": 4, "correct": 2, "accuracy": 0.5, "low": 0.1, "high": 0.9, "unscored": 0}}
        return {
            "phase": "training", "step": 0, "num_steps": 9, "latest": {}, "tokens_per_s": {}, "eta_s": None,
            "evaluations": [{"step": step, "splits": splits} for step in steps], "warnings": list(warnings),
        }  # fmt: skip

    lines = PlainLines()
    assert lines.of(status(0, 4))[1:] == [
        "evaluation step 0   all 0.500 [0.100, 0.900]",
        "evaluation step 4   all 0.500 [0.100, 0.900]",
    ]
    assert lines.of(status(0, 4)) == []
    assert len(lines.of(status(0))) == 1
    assert lines.of(status(0, 5, warnings=["w"])) == ["evaluation step 5   all 0.500 [0.100, 0.900]", "warning: w"]


def test_sparkline_spans_the_values():
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([None, float("nan")]) == ""


CRASHING = """
import sys
from pathlib import Path
from orchestrator.view import RunView
status = {"phase": "training", "step": 1, "num_steps": 3, "wall_s": 1.0, "eta_s": 2.0, "latest": {}, "rewards": [],
          "workers": {}, "states": {}, "waits": {}, "tokens_per_s": {}, "age_violations": 0, "evaluations": [],
          "warnings": []}
with RunView(Path("nowhere")) as view:
    view.update(status)
    raise RuntimeError("the run broke")
"""


def test_a_real_terminal_is_given_back_after_a_crash():
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", CRASHING],
        stdout=follower,
        stderr=follower,
        stdin=follower,
        env={**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    os.close(follower)
    output = b""
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        output += chunk
    os.close(leader)
    assert process.wait(30) == 1
    text = output.decode()
    assert text.count(HIDE) == 1
    assert text.rindex(SHOW) > text.rindex(HIDE)
    assert text.index("step 1/3") < text.index("RuntimeError: the run broke")
