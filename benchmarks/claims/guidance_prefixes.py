"""Do PrefixRL and POPE solve what GRPO cannot begin, and does it transfer to the plain prompt?

    python -m benchmarks.claims.guidance_prefixes --seeds 5 --out benchmarks/results/claims/guidance_prefixes.json

A corridor of 16 binary tokens, reward only if all are right: plain success is 2^-16, so a group of 8 has a signal once
in 8,000 groups. Three worlds differ in what the positions share. Success is that of the plain prompt, computed.
"""

from __future__ import annotations

import numpy as np

from benchmarks.claims.report import Arm, claim_main
from benchmarks.claims.tabular import Lab, World
from orchestrator.load_config import load_run_config

LENGTH, GROUPS, STEPS, RATE = 16, 4, 300, 2.0
GOAL = 0.5


def world(kind: str) -> World:
    return World(length=LENGTH, vocabulary=2, logit=np.zeros(1), shared_positions=kind == "shared")


def measured(recipe: str, kind: str, seed: int) -> dict[str, float]:
    """Steps until the plain prompt is solved half of the time, and what the gradient did before."""
    config = load_run_config(recipe)
    lab = Lab(config, world(kind), seed, learning_rate=RATE * LENGTH, groups_per_step=GROUPS, max_tries=GROUPS)
    lab.run(max_rollouts=10**9, max_steps=STEPS, goal=GOAL)
    solved = lab.policy.success().mean() >= GOAL
    lab.close()
    return {
        "solved": float(solved),
        "steps": float(lab.steps) if solved else float(STEPS),
        "rollouts": float(lab.rollouts),
        "plain_success": float(lab.policy.success().mean()),
        "share_of_zero_gradients": float(np.mean([norm == 0.0 for norm in lab.gradient_norms])),
    }


ARMS = [
    Arm(f"{recipe}, {kind}", measured, (recipe, kind))
    for kind in ("independent", "shared")
    for recipe in ("grpo", "prefixrl", "pope")
]

if __name__ == "__main__":
    claim_main(__doc__, ARMS)
