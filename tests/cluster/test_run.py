"""The whole command on a real Ray cluster with simulated engines: it ends well, survives kills, resumes, stops."""

from __future__ import annotations

import json

import pytest

from orchestrator.audit import audit_run
from tests.cluster.runs import SIMULATED, Run, wait_until_gone

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def settings(tiny_model_path):
    """The small parts, changed as a test says; the model is built before a run's clock starts."""
    return lambda *changes: (*SIMULATED, f"model={tiny_model_path}", *changes)


def assert_sound(run: Run, steps: int) -> None:
    """The books balance, nothing was trained twice or too old, and every number has a meaning."""
    report = audit_run(run.folder)
    assert report.ok, "\n".join(report.lines())
    summary = run.summary()
    assert (summary["step"], summary["age_violations"], summary["unknown_metrics"]) == (steps, 0, {})
    newest = max((run.folder / "checkpoints").glob("step-*"))
    batches = json.loads((newest / "batches.json").read_text())
    every = [group_id for group_ids in batches.values() for group_id in group_ids]
    trained = [group_id for group_id in every if not group_id.startswith("expert:")]
    assert len(batches) == steps
    assert len(trained) == len(set(trained)), "a live group was trained twice"


def test_two_workers_and_two_ranks_train_to_the_end_and_leave_nothing_behind(tmp_path, settings):
    run = Run(tmp_path, "plain", settings=settings("num_steps=6", "rollout.num_workers=2", "learner.num_ranks=2"))
    run.wait_for_step(2)
    processes = run.processes()
    assert run.wait() == 0, run.log
    assert_sound(run, 6)
    assert wait_until_gone(processes) == []
    assert (run.folder / "model" / "model.safetensors").exists()
    assert (run.folder / "report.html").exists()


def test_a_killed_rollout_worker_is_replaced_and_costs_only_its_groups_in_flight(tmp_path, settings):
    faults = "{die_after_tokens: 900, kill_process: true}"
    dying = f"rollout.engine.options={{tokens_per_s: 200, mean_length: 8, faults: {faults}}}"
    run = Run(tmp_path, "killed", settings=settings("num_steps=16", "rollout.num_workers=2", dying))
    assert run.wait() == 0, run.log
    events = [line["kind"] for line in run.lines("events.jsonl")]
    assert events.count("rollout_lost") >= 1, "the fault did not fire"
    assert events.count("rollout_replaced") >= 1
    assert_sound(run, 16)


def test_workers_join_and_leave_a_run_that_trains(tmp_path, settings):
    run = Run(tmp_path, "scaled", settings=settings("num_steps=500", "rollout.num_cpus_per_worker=0.25"))
    run.wait_for_step(2)
    assert "1 -> 4" in run.scale("rollout=4")
    run.wait_for_events("rollout_joined", 3)
    assert "4 -> 1" in run.scale("rollout=1")
    run.wait_for_events("rollout_left", 3)
    run.wait_for_step(run.step() + 2)
    assert "at least 1" in run.scale("rollout=0", code=2)
    run.interrupt()
    assert run.wait(90) == 0, run.log
    assert not [line for line in run.lines("events.jsonl") if line["kind"] == "rollout_lost"]
    assert_sound(run, run.summary()["step"])


def test_reward_workers_join_and_leave_a_run_that_trains(tmp_path, settings):
    run = Run(tmp_path, "judges", settings=settings("num_steps=500"))
    run.wait_for_step(2)
    assert "reward workers: 1 -> 3" in run.scale("reward=3")
    run.wait_for_step(run.step() + 2)
    assert "reward workers: 3 -> 1" in run.scale("reward=1")
    run.wait_for_step(run.step() + 2)
    run.interrupt()
    assert run.wait() == 0, run.log
    assert_sound(run, run.summary()["step"])


def test_after_kill_9_of_everything_a_resumed_run_trains_no_group_twice_and_loses_none(tmp_path, settings):
    run = Run(tmp_path, "resumed", settings=settings("num_steps=14", "checkpoint.every=3"))
    run.wait_for_step(7)
    run.kill_everything()
    before = run.step()
    again = Run(tmp_path, "resumed", "--resume", str(run.folder))
    assert again.wait() == 0, again.log
    assert before < 14
    assert_sound(again, 14)
    assert any(line["kind"] == "resumed" or "resumed" in line["kind"] for line in again.lines("events.jsonl"))


def test_an_interrupted_run_writes_a_checkpoint_and_leaves_no_process_behind(tmp_path, settings):
    run = Run(tmp_path, "stopped", settings=settings("num_steps=500"))
    run.wait_for_step(3)
    processes = run.processes()
    run.interrupt()
    assert run.wait(90) == 0, run.log
    assert wait_until_gone(processes) == []
    steps = run.summary()["step"]
    assert 3 <= steps < 500
    assert_sound(run, steps)


def test_log_probs_of_a_faulty_engine_are_refused_and_counted_and_the_run_goes_on(tmp_path, settings):
    faults = "{nan_logprobs_every: 7, wrong_length_every: 11}"
    faulty = f"rollout.engine.options={{tokens_per_s: 400, mean_length: 8, faults: {faults}}}"
    run = Run(tmp_path, "faulty", settings=settings("num_steps=4", faulty))
    assert run.wait() == 0, run.log
    assert_sound(run, 4)
    assert any("missing_logprobs" in reason for reason in run.summary()["drops"]), run.summary()["drops"]
