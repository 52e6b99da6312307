"""Does DARS raise pass@k at equal rollouts, by giving hard prompts more of them?

    python -m benchmarks.claims.guidance_dars --seeds 8 --out benchmarks/results/claims/guidance_dars.json

64 prompts of one token out of 32, no parameter shared, first success probabilities spread log-evenly from 0.3 % to
50 %. All arms have the same loss, dynamic sampling and 12,000 answers, and every answer moves the table by the same
measure: the loss is a sum over a constant, or a larger group would count less. pass@k is computed from the table.
"""

from __future__ import annotations

import numpy as np

from benchmarks.claims.report import Arm, claim_main
from benchmarks.claims.tabular import Lab, World
from orchestrator.config import RunConfig
from orchestrator.load_config import load_run_config

PROMPTS, ANSWERS, ROLLOUTS, RATE, CONSTANT = 64, 32, 12_000, 16.0, 128.0
HARD = 0.03


def recipe_of(name: str) -> RunConfig:
    """`even` is DARS without its growth; `stage` takes the last sampling's mean as the baseline."""
    config = load_run_config("dars_hw" if name == "hardness" else "dars_et")
    changes = {"aggregation": "width", "aggregation_constant": CONSTANT}
    if name == "stage":
        changes["advantage"] = "stage_centered"
    config = config.model_copy(update={"terms": (config.terms[0].model_copy(update=changes),)})
    if name == "even":
        return config.model_copy(update={"rollout": config.rollout.model_copy(update={"rules": ("drop_constant",)})})
    return config


def measured(name: str, seed: int) -> dict[str, float]:
    first = np.exp(np.random.default_rng([seed, 1]).uniform(np.log(0.003), np.log(0.5), PROMPTS))
    world = World(length=1, vocabulary=ANSWERS, logit=np.log(first * (ANSWERS - 1) / (1 - first)))
    lab = Lab(recipe_of(name), world, seed, learning_rate=RATE, groups_per_step=16, max_tries=16)
    lab.run(max_rollouts=ROLLOUTS, max_steps=10**6)
    success = lab.policy.success()
    lab.close()
    return {
        "pass@1": float(success.mean()),
        **{f"pass@{k}": float((1 - (1 - success) ** k).mean()) for k in (8, 32)},
        "pass@8 of prompts below 3 % at first": float((1 - (1 - success[first < HARD]) ** 8).mean()),
        "steps": float(lab.steps),
    }


ARMS = [Arm(name, measured, (name,)) for name in ("even", "equal", "hardness", "stage")]

if __name__ == "__main__":
    claim_main(__doc__, ARMS)
