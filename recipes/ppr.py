"""PPR with ReNorm: a judge rates the way, a verifier the result, and the sign follows the result."""

from __future__ import annotations

from learner.config import ClippedSurrogate, Term
from orchestrator.config import RunConfig
from recipes import _small
from recipes._judged import JUDGE
from recipes._live import live_run
from rewards.config import PoolConfig, RewardComponent, RewardConfig

CRITERION = "every step follows from the one before and serves the question"


def ppr() -> RunConfig:
    """PPR, arXiv:2509.25598: r_p + r_o - 1 for whole answers; the constant leaves a group's advantages alone. The paper
    rates the steps of a tool-using agent each by itself."""
    process = RewardComponent(verifier="judge_scale", options={"criterion": CRITERION}, pool="judge")
    return live_run(
        "ppr",
        [Term(loss=ClippedSurrogate(), aggregation="token")],
        reward=RewardConfig(
            components={**_small.REWARD.components, "process": process},
            pools={"judge": PoolConfig(service=JUDGE)},
            success="correct",
        ),
    )
