"""Wall time that one killed process costs a run, per role: real SIGKILLs, simulated engines, the tiny model.

A run trains until its pace is known; then one process is killed. Lost is the time to the next steps beyond what they
would have taken at the pace before, redone steps included. The engines take `--engine-start` seconds to start.

    python -m benchmarks.recovery --roles rollout-1 replay reward-0 learner-0 --repeats 3

A JSON line per role: seconds lost, seconds until the process was back as the run itself tells, redone steps, and the
longest pause of the learner. The bar for a rollout worker: one engine start, and the learner never stops.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from actors.model_store import fetch_model
from benchmarks.paired import environment
from orchestrator.audit import audit_run
from tests.cluster.runs import SIMULATED, Run

BACK = {"rollout": "rollout_replaced", "learner": "learner_replaced", "supervisor": "supervisor_replaced"}
"""Event that tells of a role's return; the other roles' is `box_restarted`."""
STEPS_BEFORE, STEPS_AFTER = 12, 12


def commits(run: Run) -> list[tuple[float, int]]:
    """Time and number of each reported step, in the order of the reports."""
    lines = run.lines("metrics.jsonl")
    return [(line["time"], int(line["step"])) for line in lines if line.get("role") == "learner" and "loss" in line]


def one_kill(role: str, engine_start_s: float, folder: Path) -> dict[str, Any]:
    """Raises RuntimeError when the books do not balance afterwards."""
    engine = f"rollout.engine.options={{tokens_per_s: 200, mean_length: 8, start_s: {engine_start_s}}}"
    changes = (engine, "num_steps=100000", "rollout.num_workers=2", "checkpoint.every=4", "learner.num_ranks=1")
    run = Run(folder, "run", settings=(*SIMULATED, f"model={fetch_model('tiny')}", *changes))
    back = BACK.get(role.split("-")[0], "box_restarted")
    try:
        run.wait_for_events("box_runs", 5)
        run.wait_for_step(STEPS_BEFORE)
        before = commits(run)[-STEPS_BEFORE:]
        pace = statistics.median(b - a for (a, _), (b, _) in pairwise(before))
        killed_at, killed_step = time.time(), run.step()
        run.kill(role)
        run.wait_for_events(back, 1)
        run.wait_for_step(killed_step + STEPS_AFTER)
        after = [(at, step) for at, step in commits(run) if at > killed_at]
    finally:
        run.interrupt()
        run.wait()
    if not (report := audit_run(run.folder)).ok:
        raise RuntimeError("\n".join(report.lines()))
    told = next(line for line in run.lines("events.jsonl") if line["kind"] == back)
    reached = next(at for at, step in after if step >= killed_step + STEPS_AFTER)
    times = [killed_at, *(at for at, _ in after)]
    return {
        "lost_s": reached - killed_at - STEPS_AFTER * pace,
        "back_s": told.get("seconds", told["time"] - killed_at),
        "longest_pause_s": max(b - a for a, b in pairwise(times)),
        "redone_steps": run.summary()["redone_steps"],
        "step_s": pace,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    roles = ["rollout-1", "reward-0", "replay", "tasks", "weights", "learner-0", "supervisor"]
    parser.add_argument("--roles", nargs="+", choices=roles, default=roles)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engine-start", type=float, default=3.0, help="seconds each engine takes to start")
    options = parser.parse_args()
    for role in options.roles:
        kills = []
        for _ in range(options.repeats):
            with tempfile.TemporaryDirectory(prefix="braid-recovery-") as folder:
                kills.append(one_kill(role, options.engine_start, Path(folder)))
        medians = {name: round(statistics.median(kill[name] for kill in kills), 2) for name in kills[0]}
        worst = round(max(kill["lost_s"] for kill in kills), 2)
        line = {"bench": "recovery", "role": role, **medians, "worst_lost_s": worst, "repeats": options.repeats}
        print(json.dumps({**line, "engine_start_s": options.engine_start, **environment()}), flush=True)


if __name__ == "__main__":
    main()
