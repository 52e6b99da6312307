"""Recipes that ask a judge: real engine, real learner, and a server that replies from a script."""

from __future__ import annotations

import json

import pytest
import torch

from learner.reward_model import RewardModel
from orchestrator.audit import audit_run
from orchestrator.load_config import load_run_config
from orchestrator.local_run import run_local
from tests.judge_server import JudgeServer, opinionated
from tests.recipes.test_recipe_runs import JUDGED, SMALL

IN_A_POOL = {"fapo", "ppr"}
FAST = {"fapo", "brpo"}
"""One judge of single answers behind a gate, and one of groups; the others differ in prompts that have tests of their
own."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in sorted(JUDGED)])
async def test_a_judged_recipe_runs_to_its_end(name, tmp_path, tiny_model_path):
    torch.set_num_threads(1)
    with JudgeServer(opinionated) as server:
        service = "reward.pools.judge.service" if name in IN_A_POOL else "reward.service"
        small_settings = [s for s in SMALL if name != "j1" or "tasks." not in s]
        changes = [*small_settings, f"model={tiny_model_path}", "replay.groups_per_update=4", "num_steps=2"]
        if name == "fapo":  # its judge is asked about right answers only, and the tiny model's sums are mostly wrong
            right = {"verifier": "regex_match", "options": {"pattern": "[0-4]"}}
            changes.append(f"reward.components.correct={right}")
        if name == "j1":
            small = {"num_train": 32, "num_heldout": 4}
            changes += [f"tasks.options={small}", "rollout.sampling.max_new_tokens=8"]
        elif name == "spark":
            changes += ["rollout.sampling.max_new_tokens=8", "rollout.rules.0.reflection_share=1.0"]
        elif name == "rlmt":
            RewardModel.load(tiny_model_path, seed=0).save(tmp_path / "rm")
            changes += [f"{service}.model={tmp_path / 'rm'}", f"{service}.device=cpu", f"{service}.think_tag=null"]
        else:
            changes += [f"{service}.url={server.url}", f"{service}.admission_trials=0"]
        summary = await run_local(load_run_config(name, changes), tmp_path / name)
    assert (summary["step"], summary["phase"]) == (2, "done")
    assert (len(server.bodies) > 0) == (name not in ("j1", "rlmt", "spark"))
    assert audit_run(tmp_path / name).ok
    lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    assert name == "j1" or any(line.get("grad_norm", 0.0) > 0.0 for line in lines)  # the tiny model draws no boxes
