"""SPARK: judged answers become tasks that ask the same model to judge them."""

from __future__ import annotations

from actors.config import SamplingConfig
from learner.config import ClippedSurrogate, Term
from orchestrator.config import RunConfig
from recipes._guided import guided_run
from recipes.j1 import ROOM
from rewards.config import RewardComponent, RewardConfig


def spark() -> RunConfig:
    """SPARK, arXiv:2509.22624: pairs and single answers as 7 to 3, some wrong answers to check; verdicts are rewarded
    by the labels the verifier gave."""
    return guided_run(
        "spark",
        rules=[
            {"rule": "actors.rules.recycle:recycle", "share": 0.5, "reflection_share": 0.25},
            "drop_constant",
        ],
        terms=[Term(loss=ClippedSurrogate(), aggregation="token")],
        engine=ROOM,
        sampling=SamplingConfig(max_new_tokens=96),
        reward=RewardConfig(components={"correct": RewardComponent(verifier="rewards.judge_tasks:answer_or_label")}),
    )
