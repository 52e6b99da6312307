"""BRPO: answers are compared with one of their own group, and what they win is their advantage."""

from __future__ import annotations

from learner.config import ClippedSurrogate, Term
from orchestrator.config import RunConfig
from recipes import _small
from recipes._judged import JUDGE
from recipes._live import live_run
from rewards.config import RewardComponent, RewardConfig

LOW, HIGH = 0.1375, 0.7375
"""`rewards.judges.groups.brpo_band(8)`: shares of winners between which |sum of advantages| / 8 <= 0.6."""


def brpo() -> RunConfig:
    """Writing-Zero, arXiv:2506.00103: pairwise judge in both orders, a reference drawn from the group, +1 and -1 used
    as they are, groups with an extreme reference dropped. Groups of 8 here, 16 in the paper."""
    wins = RewardComponent(verifier="judge_pairwise", scope="group")
    return live_run(
        "brpo",
        [Term(loss=ClippedSurrogate(), advantage="score", aggregation="token")],
        reward=RewardConfig(components={"wins": wins}, service=JUDGE, floor=-1.0),
        rollout=_small.ROLLOUT.model_copy(update={"rules": ({"rule": "drop_rate", "low": LOW, "high": HIGH},)}),
    )
