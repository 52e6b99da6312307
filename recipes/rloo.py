"""RLOO: the mean of the other answers is the baseline, the weight is a truncated importance ratio."""

from __future__ import annotations

from learner.config import Term, WeightedPolicyGradient
from orchestrator.config import RunConfig
from recipes._live import live_run


def rloo() -> RunConfig:
    """RLOO, arXiv:2402.14740, with its score function weighted by the ratio up to 2, because samples may be a step old.

    The paper's KL penalty inside the reward is off.
    """
    return live_run(
        "rloo",
        [
            Term(
                loss=WeightedPolicyGradient(ratio_max=2.0),
                advantage="leave_one_out",
                aggregation="constant",
                aggregation_constant=1.0,
            )
        ],
    )
