"""Does CHORD reach a level that GRPO and SFT-then-RL do not, where the policy never succeeds at first?

    python -m benchmarks.claims.objectives_mixing --seeds 5 --out benchmarks/results/claims/objectives_mixing.json

16 prompts, answers of six tokens out of 8, one right; the policy is uniform and succeeds once in 262,144 answers. The
expert gives the right answer half of the time and else one with a wrong token. All arms have 250 steps of 8 groups and
one step size; the terms are those of the recipes, their schedules included. Numbers are computed from the table.
"""

from __future__ import annotations

import numpy as np

from benchmarks.claims.answers import Answers, Table, group_of, train
from benchmarks.claims.report import Arm, claim_main
from orchestrator.load_config import load_run_config
from rewards.trajectory import Group, Source

PROMPTS, LENGTH, TOKENS, STEPS, GROUPS, RATE = 16, 6, 8, 250, 8, 40.0
EXPERT_RIGHT, EXPERT_ANSWERS = 0.5, 8


def measured(recipe: str, seed: int) -> dict[str, float]:
    rng = np.random.default_rng([seed, 1])
    solution = rng.integers(0, TOKENS, (PROMPTS, LENGTH))
    answers = Answers(np.arange(TOKENS) == solution[:, :, None])
    table = Table(np.zeros((PROMPTS, LENGTH, TOKENS)), shares=False)
    config = load_run_config(recipe)
    sources = {term.source for term in config.terms}
    expert = [_expert(p, solution[p], answers, rng) for p in range(PROMPTS)]
    num_expert = 0 if "expert" not in sources else GROUPS if "live" not in sources else GROUPS // 2
    train(
        table,
        config.terms,
        answers,
        seed,
        steps=STEPS,
        groups=GROUPS - num_expert,
        size=8,
        rate=RATE,
        frozen=expert,
        frozen_per_step=num_expert,
    )
    success = table.success(answers)
    return {"success": float(success.mean()), "prompts above the expert": float((success > EXPERT_RIGHT).mean())}


def _expert(prompt: int, solution: np.ndarray, answers: Answers, rng: np.random.Generator) -> Group:
    tokens = np.tile(solution, (EXPERT_ANSWERS, 1))
    for answer in tokens[: int(EXPERT_ANSWERS * (1 - EXPERT_RIGHT))]:
        place = rng.integers(LENGTH)
        answer[place] = (answer[place] + rng.integers(1, TOKENS)) % TOKENS
    return group_of(f"expert{prompt}", prompt, tokens, answers.scores(prompt, tokens), None, Source.EXPERT)


ARMS = [Arm(name, measured, (name,)) for name in ("grpo", "sft", "sft_then_rl", "chord_mu", "chord_phi")]

if __name__ == "__main__":
    claim_main(__doc__, ARMS)
