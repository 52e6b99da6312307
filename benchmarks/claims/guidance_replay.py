"""Does replay of own answers (ExGRPO, RLEP, ReMix) need fewer rollouts for the same accuracy?

    python -m benchmarks.claims.guidance_replay --seeds 8 --out benchmarks/results/claims/guidance_replay.json

16 prompts of four tokens out of 8, no parameter shared between prompts, first success probabilities log-evenly from 1 %
to 20 %. An arm runs until the computed success probability is 0.8 on average; what counts are the answers it sampled.
Every arm is its recipe, with one step size for all; `grpo` has ExGRPO's loss on own answers and dynamic sampling.
"""

from __future__ import annotations

import numpy as np

from benchmarks.claims.report import Arm, claim_main
from benchmarks.claims.tabular import Lab, World
from orchestrator.config import RunConfig
from orchestrator.load_config import load_run_config

PROMPTS, LENGTH, TOKENS, RATE = 16, 4, 8, 16.0
GOAL, LIMIT = 0.8, 30_000


def recipe_of(name: str) -> RunConfig:
    if name != "grpo":
        return load_run_config(name)
    config = load_run_config("exgrpo")
    rollout = config.rollout.model_copy(update={"rules": ("drop_constant",)})
    curriculum = load_run_config("grpo").curriculum
    return config.model_copy(update={"rollout": rollout, "terms": config.terms[:1], "curriculum": curriculum})


def measured(name: str, seed: int) -> dict[str, float]:
    first = np.exp(np.random.default_rng([seed, 1]).uniform(np.log(0.01), np.log(0.2), PROMPTS)) ** (1 / LENGTH)
    world = World(length=LENGTH, vocabulary=TOKENS, logit=np.log(first * (TOKENS - 1) / (1 - first)))
    lab = Lab(recipe_of(name), world, seed, learning_rate=RATE, groups_per_step=8, max_tries=16)
    lab.run(max_rollouts=LIMIT, max_steps=10**6, goal=GOAL)
    success = lab.policy.success()
    lab.close()
    return {
        "rollouts_to_80_percent": float(lab.rollouts),
        "reached": float(success.mean() >= GOAL),
        "success": float(success.mean()),
        "steps": float(lab.steps),
    }


ARMS = [Arm(name, measured, (name,)) for name in ("grpo", "exgrpo", "rlep", "remix")]

if __name__ == "__main__":
    claim_main(__doc__, ARMS)
