"""Which objectives keep pass@k: NSR or PSR, rehearsal (DPH-RL) or reverse KL, PACS and ROVER or GRPO?

    python -m benchmarks.claims.objectives_coverage --seeds 5 --out benchmarks/results/claims/objectives_coverage.json

32 prompts whose answer is one of 64 tokens, four of them right; first success probabilities log-evenly from 0.5 %
to 50 %. The prompts share a row of logits, so what is learnt on one disturbs the others. An arm is looked at when its
mean success, which is pass@1, first reaches 0.4, so that step sizes do not decide; if it never does, after 300 steps.
"answers" is the number of the four right ones that keep a probability above 1/256.
"""

from __future__ import annotations

import numpy as np

from benchmarks.claims.answers import Answers, Table, pass_at, sampled_group, train
from benchmarks.claims.report import Arm, claim_main
from learner.config import ClippedSurrogate, KLToReference, RehearsalDivergence, Schedule, Term
from orchestrator.load_config import load_run_config
from rewards.trajectory import Group, Source

PROMPTS, TOKENS, RIGHT, STEPS, GROUPS, RATE, GOAL = 32, 64, 4, 300, 8, 4.0, 0.4
STORED = 16
"""Answers of the first policy per prompt, its own right ones, for the rehearsal."""

REWARDED = Term(loss=ClippedSurrogate(), advantage="centered")
DIVERGENCE = Schedule(start=0.1)
"""One weight for both divergences."""

TERMS: dict[str, tuple[Term, ...]] = {
    "GRPO, centred": (REWARDED,),
    "reverse KL": (REWARDED, Term(loss=KLToReference(estimator="k3+"), weight=DIVERGENCE)),
    "DPH-RL, forward": (REWARDED, Term(loss=RehearsalDivergence(), source="own_past", weight=DIVERGENCE)),
    "DPH-RL, JS": (REWARDED, Term(loss=RehearsalDivergence(generator="js"), source="own_past", weight=DIVERGENCE)),
    **{name: load_run_config(name).terms for name in ("psr", "nsr", "w_reinforce", "pacs", "rover")},
}


def measured(arm: str, seed: int) -> dict[str, float]:
    rng = np.random.default_rng([seed, 1])
    right = np.zeros((PROMPTS, 1, TOKENS), bool)
    for prompt in range(PROMPTS):
        right[prompt, 0, rng.choice(TOKENS, RIGHT, replace=False)] = True
    first = np.exp(rng.uniform(np.log(0.005), np.log(0.5), PROMPTS))
    logits = np.where(right, np.log(first * (TOKENS - RIGHT) / (RIGHT * (1 - first)))[:, None, None], 0.0)
    logits = logits + rng.normal(0.0, 0.5, logits.shape)
    answers, table, terms = Answers(right), Table(logits, shares=True), TERMS[arm]
    before = table.success(answers)
    rehearses = any(term.source == "own_past" for term in terms)
    steps = train(
        table,
        terms,
        answers,
        seed,
        steps=STEPS,
        groups=GROUPS,
        size=8,
        rate=RATE,
        frozen=_stored(table, answers, rng) if rehearses else (),
        frozen_per_step=GROUPS if rehearses else 0,
        until=lambda: bool(table.success(answers).mean() >= GOAL),
    )
    after, probabilities = table.success(answers), table.probabilities()
    return {
        "steps": float(steps),
        **{f"pass@{k}": pass_at(after, k) for k in (1, 16, 128)},
        "pass@128 at first": pass_at(before, 128),
        "pass@128 of prompts below 5 % at first": pass_at(after[before < 0.05], 128),
        "answers": float(((probabilities > 1 / 256) & right).sum(axis=(1, 2)).mean()),
    }


def _stored(table: Table, answers: Answers, rng: np.random.Generator) -> list[Group]:
    logs = table.log_table().detach().numpy()
    return [
        sampled_group(f"stored{p}", p, logs, answers, rng, size=STORED, source=Source.OWN_PAST) for p in range(PROMPTS)
    ]


ARMS = [Arm(name, measured, (name,)) for name in TERMS]

if __name__ == "__main__":
    claim_main(__doc__, ARMS)
