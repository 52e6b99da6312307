"""Do R2VPO and TIS learn from stale answers where plain clipping stalls?

    python -m benchmarks.claims.objectives_stale --seeds 8 --out benchmarks/results/claims/objectives_stale.json

16 prompts, answers of three tokens out of 8, one right at every position, first success about 2 %. Answers were sampled
by the policy of 0 or 32 steps ago. All arms have 250 steps of 8 groups of 8 answers and one step size; terms are the
recipes'. "steps" counts until the computed success is 0.8 on average, 250 where it never is.
"""

from __future__ import annotations

import numpy as np

from benchmarks.claims.answers import Answers, Table, train
from benchmarks.claims.report import Arm, claim_main
from learner.config import RatioSurrogate, Term
from orchestrator.load_config import load_run_config

PROMPTS, LENGTH, TOKENS, STEPS, GROUPS, RATE, GOAL = 16, 3, 8, 250, 8, 40.0, 0.8
LAGS = (0, 32)


def measured(name: str, lag: int, seed: int) -> dict[str, float]:
    rng = np.random.default_rng([seed, 1])
    solution = rng.integers(0, TOKENS, (PROMPTS, LENGTH))
    right = np.arange(TOKENS) == solution[:, :, None]
    answers, table = Answers(right), Table(np.where(right, 1.0, 0.0), shares=True)
    terms = (Term(loss=RatioSurrogate()),) if name == "no bound" else load_run_config(name).terms
    course: list[float] = []

    def follow() -> bool:
        course.append(float(table.success(answers).mean()))
        return False

    train(table, terms, answers, seed, steps=STEPS, groups=GROUPS, size=8, rate=RATE, lag=lag, until=follow)
    reached = [step + 1 for step, success in enumerate(course) if success >= GOAL]
    return {"success": course[-1], "best": max(course), "steps": float(reached[0] if reached else STEPS)}


ARMS = [
    Arm(f"{name}, lag {lag}", measured, (name, lag))
    for lag in LAGS
    for name in ("grpo", "no bound", "tis", "r2vpo", "r2vpo_dual", "topr")
]

if __name__ == "__main__":
    claim_main(__doc__, ARMS)
