"""Does PCL find prompts of middling difficulty among those it never sampled?

    python -m benchmarks.claims.guidance_selection --seeds 10 --out benchmarks/results/claims/guidance_selection.json

2,000 prompts are random sums of words, each word with a difficulty of its own; a prompt's success probability is a
logistic function of them. 200 prompts are tried with 8 answers each. The value model then ranks the other 1,800 from
their words alone; 64 of 256 candidates are taken. p (1 - p) is what a group's advantages are worth, at most 0.25.
"""

from __future__ import annotations

import numpy as np

from actors.ledger import LedgerRow
from actors.samplers.models import predicted_rates
from benchmarks.claims.report import Arm, claim_main
from rewards.task import Task

PROMPTS, TRIED, ANSWERS, WORDS, LENGTH = 2000, 200, 8, 40, 6
CANDIDATES, TAKEN = 256, 64


def measured(how: str, seed: int) -> dict[str, float]:
    """Mean p (1 - p) of the chosen prompts, and answers sampled to choose them beyond the first 200 groups."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(0.0, 2.0, WORDS)
    words = rng.integers(WORDS, size=(PROMPTS, LENGTH))
    p = 1.0 / (1.0 + np.exp(-difficulty[words].mean(axis=1) * LENGTH**0.5))
    tasks = [Task(task_id=str(i), prompt=" ".join(f"word{w}" for w in words[i])) for i in range(PROMPTS)]
    rows = [
        LedgerRow(prompt_id=str(i), attempts=ANSWERS, successes=int(rng.binomial(ANSWERS, p[i])))
        if i < TRIED
        else LedgerRow(prompt_id=str(i))
        for i in range(PROMPTS)
    ]
    candidates = TRIED + rng.permutation(PROMPTS - TRIED)[:CANDIDATES]
    if how == "random":
        estimate, cost = rng.random(CANDIDATES), 0
    elif how == "rollouts":
        estimate, cost = rng.binomial(ANSWERS, p[candidates]) / ANSWERS, ANSWERS * CANDIDATES
    else:
        estimate, cost = predicted_rates(tasks, rows, 256, 1.0)[candidates], 0
    chosen = candidates[np.argsort(np.abs(estimate - 0.5), kind="stable")[:TAKEN]]
    return {
        "worth": float((p * (1 - p))[chosen].mean()),
        "share between 0.2 and 0.8": float(((p[chosen] > 0.2) & (p[chosen] < 0.8)).mean()),
        "correlation of estimate and rate": float(np.corrcoef(estimate, p[candidates])[0, 1]),
        "answers sampled": float(cost),
    }


ARMS = [Arm(how, measured, (how,)) for how in ("random", "value model", "rollouts")]

if __name__ == "__main__":
    claim_main(__doc__, ARMS)
