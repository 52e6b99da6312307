"""SIGKILL of single processes of a run on a real Ray cluster: the others go on, and the books balance."""

from __future__ import annotations

import pytest

from orchestrator.audit import audit_run
from tests.cluster.runs import SIMULATED, Run, wait_until_gone
from tests.cluster.test_run import assert_sound

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def settings(tiny_model_path):
    return lambda *changes: (*SIMULATED, f"model={tiny_model_path}", *changes)


def events(run: Run, kind: str) -> list[dict]:
    return [line for line in run.lines("events.jsonl") if line["kind"] == kind]


def test_killed_boxes_come_back_where_they_were_and_the_run_never_restarts(tmp_path, settings):
    run = Run(tmp_path, "boxes", settings=settings("num_steps=500", "rollout.num_workers=2"))
    run.wait_for_step(2)
    run.wait_for_events("box_runs", 5)
    for restarts, box in enumerate(("replay", "tasks", "weights", "reward-0"), start=1):
        pid = run.kill(box)
        run.wait_for_events("box_restarted", restarts)
        assert run.pid_of(box) != pid
        run.wait_for_step(run.step() + 2)
    processes = run.processes()
    run.interrupt()
    assert run.wait() == 0, run.log
    assert [line["box"] for line in events(run, "box_restarted")] == ["replay", "tasks", "weights", "reward-0"]
    assert not events(run, "learner_lost"), "a lost box took the learner with it"
    assert not events(run, "rollout_lost"), "a lost box took a rollout worker with it"
    assert run.summary()["redone_steps"] == 0
    assert_sound(run, run.summary()["step"])
    assert wait_until_gone(processes) == []


def test_a_killed_learner_rank_costs_the_steps_since_the_checkpoint_and_no_rollout_worker(tmp_path, settings):
    changes = ("num_steps=500", "learner.num_ranks=2", "checkpoint.every=2", "rollout.num_cpus_per_worker=0.5")
    run = Run(tmp_path, "ranks", settings=settings(*changes))
    run.wait_for_step(3)
    for replaced, rank in enumerate(("learner-1", "learner-0"), start=1):
        run.kill(rank)
        run.wait_for_events("learner_replaced", replaced, timeout_s=600)
        run.wait_for_step(run.step() + 3)
    run.interrupt()
    assert run.wait() == 0, run.log
    assert len(events(run, "learner_lost")) == 2
    assert all(line["step"] >= 2 for line in events(run, "learner_replaced")), "no checkpoint was used"
    assert not events(run, "rollout_lost")
    assert_sound(run, run.summary()["step"])
    assert audit_run(run.folder).checkpoint_step == run.summary()["step"]


def test_a_killed_supervisor_takes_its_run_over_again_and_nobody_else_notices(tmp_path, settings):
    run = Run(tmp_path, "watched", settings=settings("num_steps=500", "rollout.num_workers=2"))
    run.wait_for_events("box_runs", 5)
    run.wait_for_step(2)
    before = {box: run.pid_of(box) for box in ("learner-0", "rollout-0", "rollout-1", "replay")}
    run.kill("supervisor")
    run.wait_for_events("supervisor_replaced", 1)
    run.wait_for_step(run.step() + 2)
    run.kill("rollout-1")  # the new one watches over it
    run.wait_for_events("rollout_replaced", 1)
    processes = run.processes()
    run.interrupt()
    assert run.wait() == 0, run.log
    after = {box: run.pid_of(box) for box in before}
    assert {box for box in before if before[box] != after[box]} == {"rollout-1"}
    assert (len(events(run, "learner_lost")), len(events(run, "rollout_lost"))) == (0, 1)
    assert run.summary()["redone_steps"] == 0
    assert_sound(run, run.summary()["step"])
    assert wait_until_gone(processes) == []
