"""SSP: the policy proposes problems for given answers, solves them, and is paid for both."""

from __future__ import annotations

from learner.config import ClippedSurrogate, Term
from orchestrator.config import RunConfig
from recipes import _small
from recipes._guided import ON_POLICY, guided_run
from rewards.config import RewardComponent, RewardConfig, TaskConfig

TASKS = TaskConfig(source="self_play", num_train=256, num_heldout=600, options={"prompt_template": _small.PROMPT})

AUTHOR = Term(loss=ClippedSurrogate(clip_low=0.2, clip_high=0.28), source="own_past", advantage="whitened")
"""Authors of the batch's problems against each other: each is alone in its group."""


def ssp() -> RunConfig:
    """SSP, Alibaba-Quark/SSP: one proposal per answer is solved, proposer paid 1 - s, upper clip 0.28.

    Validity is learned in the proposer's own group, difficulty where its solvers are. The check is exact arithmetic
    instead of a model that searches; no KL.
    """
    return guided_run(
        "ssp",
        tasks=TASKS,
        reward=RewardConfig(components={"self_play": RewardComponent(verifier="self_play")}),
        rules=[{"rule": "fork_proposals", "num": 1}, {"rule": "join_proposer", "source": "own_past"}],
        terms=(ON_POLICY, AUTHOR),
    )
