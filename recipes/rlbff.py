"""RLBFF: the reward is how sure a judge is that the answer satisfies a principle."""

from __future__ import annotations

from learner.config import ClippedSurrogate, Term
from orchestrator.config import RunConfig
from recipes._judged import JUDGE
from recipes._live import live_run
from rewards.config import RewardComponent, RewardConfig

PRINCIPLE = "The answer gives the right result and nothing else."


def rlbff() -> RunConfig:
    """RLBFF, arXiv:2509.21319: log P(Yes) - log P(No) of a stated principle; the judge's own training is not part."""
    principle = RewardComponent(verifier="judge_principle", options={"principle": PRINCIPLE})
    return live_run(
        "rlbff",
        [Term(loss=ClippedSurrogate(), aggregation="token")],
        reward=RewardConfig(components={"principle": principle}, service=JUDGE),
    )
