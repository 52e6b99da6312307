"""Many SIGKILLs in one run on a real Ray cluster, over all roles, in an order that a seed decides."""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest

from orchestrator.audit import audit_run
from tests.cluster.runs import SIMULATED, Run, wait_until_gone
from tests.cluster.test_run import assert_sound

pytestmark = [pytest.mark.cluster, pytest.mark.soak, pytest.mark.timeout(4 * 3600)]

BACK = {
    "replay": "box_restarted",
    "tasks": "box_restarted",
    "weights": "box_restarted",
    "reward-0": "box_restarted",
    "reward-1": "box_restarted",
    "rollout-0": "rollout_replaced",
    "rollout-1": "rollout_replaced",
    "learner-0": "learner_replaced",
    "learner-1": "learner_replaced",
    "supervisor": "supervisor_replaced",
}


def test_a_run_outlives_the_death_of_every_process_many_times(tmp_path, tiny_model_path):
    seed, num_kills = int(os.environ.get("BRAID_SEED", "0")), int(os.environ.get("BRAID_KILLS", "50"))
    draw = random.Random(seed)
    changes = (
        "num_steps=1000000",
        "max_losses=1000",
        "checkpoint.every=4",
        "rollout.num_workers=2",
        "rollout.num_cpus_per_worker=0.25",
        "learner.num_ranks=2",
        "reward.num_workers=2",
    )
    run = Run(tmp_path, "soak", settings=(*SIMULATED, f"model={tiny_model_path}", *changes))
    run.wait_for_events("box_runs", 6)
    run.wait_for_step(2)
    killed: Counter[str] = Counter()
    for number in range(num_kills):
        victim = list(BACK)[number % len(BACK)] if number < len(BACK) else draw.choice(list(BACK))
        seen = count(run, BACK[victim])
        run.kill(victim)
        run.wait_for_events(BACK[victim], seen + 1)
        killed[victim] += 1
        run.wait_for_step(run.step() + draw.choice((0, 1, 2, 5)))
    run.wait_for_step(run.step() + 2)
    processes = run.processes()
    run.interrupt()
    assert run.wait() == 0, run.log
    report = audit_run(run.folder)
    print(f"seed {seed}: {killed.total()} kills, {dict(killed)}", *report.lines(), sep="\n")
    assert_sound(run, run.summary()["step"])
    assert wait_until_gone(processes) == []


def count(run: Run, kind: str) -> int:
    return sum(line["kind"] == kind for line in run.lines("events.jsonl"))
