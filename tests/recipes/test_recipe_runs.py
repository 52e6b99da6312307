"""Every recipe trains on the tiny model: real engine, real learner, all loops in this process."""

from __future__ import annotations

import json
import math

import pytest

from orchestrator.audit import audit_run
from orchestrator.load_config import load_run_config, recipe_names
from orchestrator.local_run import run_local

SMALL = (
    "num_steps=3",
    "rollout.engine.kind=transformers",
    "rollout.group_size=8",
    "rollout.concurrent_groups=4",
    "tasks.num_train=256",
    "tasks.num_heldout=16",
    "tasks.options.prompt_template=Calculate {expression}. Reply with only the number.",  # what the model was taught
    "evaluation.every=0",
    "layout=null",
    "tracking.sinks=[]",
)

SLOW = {
    "agent_rlvr",
    "arpo_gui",
    "bepa",
    "brorl",
    "dars_b",
    "dars_hw",
    "decoupled_ppo",
    "demo_regularized",
    "difficulty_band",
    "difficulty_pools",
    "diversity_precision",
    "dph_rl",
    "dpo_expert",
    "dppo_kl",
    "dro",
    "fdpg",
    "gdc",
    "gdpo",
    "grpo_passk",
    "mdpo",
    "mis",
    "npr",
    "opmd_soft",
    "opsm",
    "otr",
    "psr",
    "reinforce_pp_plain",
    "rere",
    "rl_plus",
    "rover",
    "seq_mask_tis",
    "signal_priority",
    "sophia",
    "spin",
    "stable_reinforce",
    "sws",
    "unbiased_kl",
    "visurf",
    "vtrace",
}
"""All of their machinery runs in other recipes, or they sample for long until their rules have what they want."""

JUDGED = {"brpo", "fapo", "j1", "ppr", "reward_dance", "rlbff", "rlmt", "rubric_anchors", "spark"}
"""They ask a model the user names, or train one that judges: see test_judged_recipes."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
        for name in recipe_names()
        if name not in JUDGED
    ],
)
async def test_a_recipe_runs_to_its_end_on_the_tiny_model(name, tmp_path, tiny_model_path):
    base = load_run_config(name, [])
    groups = min(base.replay.groups_per_update, 9)
    small = [s for s in SMALL if "prompt_template" not in s or "prompt_template" in base.tasks.options]
    changes = [*small, f"model={tiny_model_path}", f"replay.groups_per_update={groups}"]
    if base.learner.teacher is not None:
        changes.append(f"learner.teacher.model={tiny_model_path}")
    summary = await run_local(load_run_config(name, changes), tmp_path / name)
    assert (summary["step"], summary["phase"], summary["age_violations"]) == (3, "done", 0)
    assert summary["unknown_metrics"] == {}
    assert summary["after"]["all"]["n"] == 16
    report = audit_run(tmp_path / name)
    assert report.ok, "\n".join(report.lines())
    lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 3
    assert all(math.isfinite(loss) for loss in losses)
    has_signal = "expert" in str(base.terms) or any(line.get("reward_mean") for line in lines)
    assert any(line.get("grad_norm", 0.0) > 0.0 for line in lines) or not has_signal, "nothing moved the weights"
