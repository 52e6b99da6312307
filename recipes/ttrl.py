"""TTRL: what most answers of a group say is taken for right; no reference is read."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import guided_run
from rewards.config import RewardComponent, RewardConfig

VOTE = RewardComponent(verifier="majority_vote", scope="group", options={"read": "last_number"})


def ttrl() -> RunConfig:
    """TTRL, arXiv:2504.16084: all vote, the first half is trained; 16 and 8 here, 64 and 32 in the paper.

    Evaluation has one answer per problem and compares it with the reference.
    """
    return guided_run(
        "ttrl",
        reward=RewardConfig(components={"vote": VOTE}),
        rules=[{"rule": "keep_first", "num": 8}],
        group_size=16,
    )
