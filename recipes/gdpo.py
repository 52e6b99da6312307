"""GDPO: each part of the reward is compared by itself, so that none drowns the others."""

from __future__ import annotations

from learner.config import ClippedSurrogate, Term
from orchestrator.config import RunConfig
from recipes import _small
from recipes._live import live_run
from recipes.dapo import OVERLONG
from rewards.config import RewardConfig


def gdpo() -> RunConfig:
    """GDPO, arXiv:2601.05242: correctness and length each relative to their group, summed, whitened."""
    return live_run(
        "gdpo",
        [Term(loss=ClippedSurrogate(), advantage="component_relative")],
        reward=RewardConfig(components={**_small.REWARD.components, "overlong": OVERLONG}),
    )
