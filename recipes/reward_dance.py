"""RewardDance: the reward is the probability that an answer beats a reference answer."""

from __future__ import annotations

from learner.config import ClippedSurrogate, Term
from orchestrator.config import RunConfig
from recipes._judged import JUDGE
from recipes._live import live_run
from rewards.config import RewardComponent, RewardConfig

PRINCIPLE = "The answer gives the right result and nothing else."


def reward_dance() -> RunConfig:
    """RewardDance, arXiv:2509.08826, in text: the probability that an answer beats the reference one."""
    options = {"principle": PRINCIPLE, "output": "probability", "against_reference": True}
    better = RewardComponent(verifier="judge_principle", options=options)
    return live_run(
        "reward_dance",
        [Term(loss=ClippedSurrogate(), aggregation="token")],
        reward=RewardConfig(components={"better": better}, service=JUDGE, success_above=0.5),
    )
