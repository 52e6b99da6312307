"""Rubric Anchors: criteria with weights, a veto and saturation in one judge's call."""

from __future__ import annotations

from learner.config import ClippedSurrogate, Term
from orchestrator.config import RunConfig
from recipes._judged import JUDGE
from recipes._live import live_run
from rewards.config import RewardComponent, RewardConfig

CRITERIA = (
    {"name": "right", "text": "The result is right.", "weight": 2.0, "levels": ["no", "yes"], "veto_below": 0.5},
    {"name": "plain", "text": "It says nothing but the result.", "weight": 1.0, "levels": ["no", "partly", "yes"]},
)


def rubric_anchors() -> RunConfig:
    """Rubric Anchors, arXiv:2508.12790: veto and saturation as the paper describes them in words, c = 2 is ours."""
    rubric = RewardComponent(verifier="judge_rubric", options={"criteria": list(CRITERIA), "saturation": 2.0})
    return live_run(
        "rubric_anchors",
        [Term(loss=ClippedSurrogate(), aggregation="token")],
        reward=RewardConfig(components={"rubric": rubric}, service=JUDGE, success_above=0.5),
    )
