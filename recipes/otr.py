"""One-Token Rollout: each expert token is an episode of one step, drawn by the policy itself."""

from __future__ import annotations

from fractions import Fraction

from actors.config import ReplayConfig
from learner.config import OneTokenRollout, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def otr() -> RunConfig:
    """OTR, arXiv:2509.26313 (second-hand): reward 1 for a draw that is the expert's token.

    Number of draws and reward of a miss are not confirmed; 8 and -0.1 are ours.
    """
    return live_run(
        "otr",
        [Term(loss=OneTokenRollout(draws=8, miss_reward=-0.1), source="expert")],
        replay=ReplayConfig(groups_per_update=32, max_age=0, quotas={"expert": Fraction(1)}),
    )
