"""`braid watch` follows a run through its files."""

import io
import json

import pytest

from orchestrator.cli import main
from orchestrator.summary import NoSummaryError
from orchestrator.watch import SILENT_S, read_status, watch_run
from tests.orchestrator.run_driver import NUM_STEPS, RunDriver, drive_run


class Patience:
    """Stands in for `time.sleep`: the run goes on while the watcher sleeps, which does not do so for ever."""

    def __init__(self, *happenings) -> None:
        self._happenings = list(happenings)

    def __call__(self, _: float) -> None:
        assert self._happenings, "the watcher waits for something that never comes"
        self._happenings.pop(0)()


async def test_a_run_is_followed_to_its_end_and_summed_up(tmp_path, monkeypatch):
    driver = RunDriver(tmp_path, monkeypatch)
    await driver.begin()
    await driver.train(1, 3)
    told = read_status(tmp_path)
    later = []
    for upto in (4, 6):
        await driver.train(upto - 1 if upto > 4 else 4, upto)
        later.append((tmp_path / "status.json").read_text())
    await driver.end()
    last = (tmp_path / "status.json").read_text()

    (tmp_path / "status.json").write_text(json.dumps(told))
    steps = [lambda text=text: (tmp_path / "status.json").write_text(text) for text in (*later, last)]
    output = io.StringIO()
    watch_run(tmp_path, output=output, sleep=Patience(*steps), clock=lambda: told["time"])
    shown = output.getvalue()
    assert f"step 3/{NUM_STEPS}" in shown
    assert f"step 6/{NUM_STEPS}" in shown
    assert "phase done" in shown
    assert "Held-out accuracy" in shown


async def test_silence_is_told_once(tmp_path, monkeypatch):
    driver = RunDriver(tmp_path, monkeypatch)
    await driver.begin()
    await driver.train(1, 2)
    told = read_status(tmp_path)
    output = io.StringIO()
    with pytest.raises(AssertionError, match="never comes"):
        watch_run(
            tmp_path,
            output=output,
            sleep=Patience(lambda: None, lambda: None),
            clock=lambda: told["time"] + SILENT_S,
        )
    assert output.getvalue().count("nothing new for 1 min 00 s") == 1


async def test_a_finished_run_is_shown_at_once(tmp_path, monkeypatch, capsys):
    await drive_run(tmp_path / "mine", monkeypatch)
    assert main(["watch", "mine", "--runs", str(tmp_path)]) == 0
    assert "phase done" in capsys.readouterr().out


async def test_a_finished_run_without_a_status_file_is_summed_up(tmp_path, monkeypatch):
    await drive_run(tmp_path, monkeypatch)
    (tmp_path / "status.json").unlink()
    output = io.StringIO()
    watch_run(tmp_path, output=output, sleep=Patience())
    assert "Held-out accuracy" in output.getvalue()


def test_a_run_that_failed_before_it_had_numbers(tmp_path):
    (tmp_path / "status.json").write_text(json.dumps({"phase": "failed", "time": 0.0}))
    with pytest.raises(NoSummaryError):
        watch_run(tmp_path, output=io.StringIO(), sleep=Patience())
