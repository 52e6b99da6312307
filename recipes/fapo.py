"""FAPO: a right answer after a wrong step earns less than a right one, and more than a wrong one."""

from __future__ import annotations

from learner.config import ClippedSurrogate, Term
from orchestrator.config import RunConfig
from recipes import _small
from recipes._judged import JUDGE
from recipes._live import live_run
from rewards.config import PoolConfig, RewardComponent, RewardConfig


def fapo() -> RunConfig:
    """FAPO, arXiv:2510.22543: 1, 0.5 and 0 for right, flawed and wrong, which a group's normalisation makes the paper's
    1, 0 and -1. A judge that fails leaves the sample out, where the reference code calls it flawless."""
    flawed = RewardComponent(verifier="judge_first_error", weight=-0.5, gate="correct", pool="judge")
    return live_run(
        "fapo",
        [Term(loss=ClippedSurrogate(clip_low=0.2, clip_high=0.28), aggregation="token")],
        reward=RewardConfig(
            components={**_small.REWARD.components, "flawed": flawed},
            pools={"judge": PoolConfig(service=JUDGE)},
            success="correct",
        ),
    )
