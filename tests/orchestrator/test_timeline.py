"""The trace of a run: slices say how long things took, none lies across another, and weights have an arrow."""

import json
from collections import defaultdict
from itertools import pairwise

import pytest

from orchestrator.summary import NoSummaryError
from orchestrator.timeline import make_timeline, write_timeline

BEGAN = 1_700_000_000.0


def learner(time, step, **values):
    return {"time": BEGAN + time, "role": "learner", "step": step, **values}


METRICS = [
    learner(1.0, 0, publish_s=0.5),
    learner(1.4, 0, publish_write_s=0.4),
    # a step of 3 s after a wait of 2 s; its weights are copied before it is told
    learner(7.0, 1, publish_s=0.5),
    learner(
        7.01, 1, train_s=3.0, lease_wait_s=2.0, loss=0.5,
        **{"train_phase/plan_s": 0.5, "train_phase/forward_s": 1.0, "train_phase/backward_s": 1.25},
    ),
    learner(7.5, 1, publish_write_s=0.4),
    {"time": BEGAN + 8.0, "role": "rollout-0", "step": 1, "running": 3.0, "waiting": 0.0, "busy_s": 4.0},
    # a report that came late: the step before seems to reach into this one
    learner(9.0, 2, train_s=2.5, lease_wait_s=0.0, loss=0.4),
    learner(9.2, 2, checkpoint_s=0.1),
    {"time": BEGAN + 10.0, "role": "run", "step": 1, "resumed_step": 1.0},
]  # fmt: skip
EVENTS = [
    {"time": BEGAN, "kind": "started", "start": 1, "step": 0},
    {
        "time": BEGAN + 8.5, "kind": "activated", "worker": "rollout-0", "version": 1, "step": 1, "pause_s": 1.0,
        "verify_s": 0.2, "freeze_s": 0.1, "load_s": 0.6, "reset_s": 0.1, "probe_s": 0.1,
    },
    {"time": BEGAN + 9.5, "kind": "rollout_lost", "worker": "rollout-0", "error": "killed"},
    {"time": BEGAN + 9.6, "kind": "box_restarted", "box": "replay", "seconds": 2.0},
]  # fmt: skip
EVALUATIONS = [
    {"time": BEGAN + 12.0, "step": 2, "version": 2, "seconds": 1.5, "splits": {"all": {"accuracy": 0.25}}},
    {"time": BEGAN + 12.5, "resumed_step": 1},
]


@pytest.fixture
def run_dir(tmp_path):
    for name, lines in (("metrics", METRICS), ("events", EVENTS), ("evaluations", EVALUATIONS)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def rows_of(trace):
    """Slices as (name, begin, end) in seconds, by process and row."""
    events = trace["traceEvents"]
    roles = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    rows = defaultdict(list)
    for e in events:
        if e["ph"] == "X":
            row = (roles[e["pid"]], names[e["pid"], e["tid"]])
            rows[row].append((e["name"], e["ts"] / 1e6, (e["ts"] + e["dur"]) / 1e6))
    return rows


def test_slices_begin_as_long_before_their_report_as_they_took(run_dir):
    rows = rows_of(make_timeline(run_dir))
    assert rows["learner", "steps"] == [
        ("copy weights of step 0", 0.5, 1.0),
        ("wait for batch", 1.5, 3.5),
        ("step 1", 3.5, 6.5),
        ("copy weights of step 1", 6.5, 7.0),
        ("step 2", 7.0, 9.0),  # shortened
        ("copy state of step 2", 9.1, 9.2),
    ]
    assert rows["learner", "phases of the step"] == [
        ("plan", 3.5, 4.0),
        ("forward", 4.0, 5.0),
        ("backward", 5.0, 6.25),
    ]
    assert rows["rollout-0", "new weights"] == [("verify", 7.3, 7.5), ("version 1", 7.5, 8.5)]
    assert rows["rollout-0", "within the pause"][1] == ("load", 7.6, 8.2)
    assert rows["evaluation", "held-out"] == [("step 2", 10.5, 12.0)]
    assert rows["replay", "away"] == [("box_restarted", 7.6, 9.6)]


def test_an_arrow_leads_from_the_written_version_to_the_engine_that_took_it(run_dir):
    events = make_timeline(run_dir)["traceEvents"]
    starts = {e["id"]: e for e in events if e["ph"] == "s"}
    (finish,) = (e for e in events if e["ph"] == "f")
    start = starts[finish["id"]]
    assert start["ts"] < finish["ts"]
    for end, name in ((start, "write version of step 1"), (finish, "version 1")):
        slices = [e for e in events if e["ph"] == "X" and (e["pid"], e["tid"]) == (end["pid"], end["tid"])]
        assert [e["name"] for e in slices if e["ts"] <= end["ts"] <= e["ts"] + e["dur"]] == [name]


def test_what_happened_at_a_moment_and_what_changes_over_time_is_there(run_dir):
    events = make_timeline(run_dir)["traceEvents"]
    assert {e["name"] for e in events if e["ph"] == "i"} == {"started", "rollout_lost", "went back to step 1"}
    assert {e["name"] for e in events if e["ph"] == "C"} == {"loss", "running", "waiting"}


def test_a_trace_viewer_can_read_it(run_dir):
    path = write_timeline(run_dir)
    events = json.loads(path.read_text())["traceEvents"]
    assert path.name == "timeline.json"
    assert all(e["ts"] >= 0 and e.get("dur", 0) >= 0 for e in events if e["ph"] != "M")
    for slices in rows_of({"traceEvents": events}).values():
        assert all(a_end <= b_start + 1e-9 for (_, _, a_end), (_, b_start, _) in pairwise(slices))


def test_a_folder_without_reports_is_refused(tmp_path):
    with pytest.raises(NoSummaryError, match="holds no reports yet"):
        make_timeline(tmp_path)
