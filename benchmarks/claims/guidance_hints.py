"""Does Guide improve the plain prompt where GHPO improves only the hinted one?

    python -m benchmarks.claims.guidance_hints --seeds 5 --out benchmarks/results/claims/guidance_hints.json

Prompts of 64 answers, one right, which the policy gives with a probability near 0.2 %; behind a hint with 50 %. The two
contexts share no parameter. Numbers are of the plain prompt: how far steps without a right plain answer moved its
logits, and its success after equal rollouts.
"""

from __future__ import annotations

import asyncio

import numpy as np

from benchmarks.claims.report import Arm, claim_main
from benchmarks.claims.tabular import Lab, World
from orchestrator.config import RunConfig
from orchestrator.load_config import load_run_config
from rewards.trajectory import Context

PROMPTS, ANSWERS, ROLLOUTS, RATE = 8, 64, 6_000, 30.0
PLAIN_LOGIT = -2.0
HINT = {"kind": "hint"}


def recipe_of(name: str) -> RunConfig:
    """The recipe; its hint shows no part of a one-token answer, but makes the right one likely."""
    config = load_run_config(name)
    if name == "grpo":
        return config
    (rule,) = config.rollout.rules
    assert isinstance(rule, dict)
    hinted = {**rule, "contexts": [HINT]} if name == "ghpo" else {**rule, "context": {**HINT, "removed": True}}
    return config.model_copy(update={"rollout": config.rollout.model_copy(update={"rules": (hinted,)})})


def lab_of(name: str, seed: int) -> Lab:
    world = World(length=1, vocabulary=ANSWERS, logit=np.full(PROMPTS, PLAIN_LOGIT), shared_contexts=False)
    lab = Lab(recipe_of(name), world, seed, learning_rate=RATE, groups_per_step=4, max_tries=4)
    hinted = [row for i in range(PROMPTS) for row in lab.policy.rows(i, Context(kind="hint"))]
    lab.policy.logits.detach()[hinted, 0] = float(np.log(ANSWERS - 1))
    return lab


def measured(name: str, seed: int) -> dict[str, float]:
    lab = lab_of(name, seed)
    plain = np.unique([lab.policy.rows(i, Context()) for i in range(PROMPTS)])
    before = float(lab.policy.success().mean())
    moved_by_help = 0.0
    while lab.rollouts < ROLLOUTS:
        table = lab.policy.logits.detach().numpy()[plain].copy()
        seen_right = _plain_successes(lab)
        lab.step()
        change = float(np.abs(lab.policy.logits.detach().numpy()[plain] - table).max())
        if _plain_successes(lab) == seen_right:  # no plain answer of this step was right: what moved the rows was help
            moved_by_help = max(moved_by_help, change)
    after = float(lab.policy.success().mean())
    hinted = float(lab.policy.success(Context(kind="hint")).mean())
    lab.close()
    return {
        "plain_success_before": before,
        "largest_move_of_plain_logits_by_hinted_groups": moved_by_help,
        "plain_success": after,
        "hinted_success": hinted,
    }


def _plain_successes(lab: Lab) -> int:
    return sum(row.successes for row in asyncio.run(lab.feed.ledger()))


ARMS = [Arm(name, measured, (name,)) for name in ("grpo", "ghpo", "guide")]

if __name__ == "__main__":
    claim_main(__doc__, ARMS)
