"""TOPR: failures under a truncated ratio of the whole answer, successes as they are."""

from __future__ import annotations

from learner.config import Term, WeightedPolicyGradient
from orchestrator.config import RunConfig
from recipes import _small
from recipes._live import live_run


def topr() -> RunConfig:
    """TOPR, arXiv:2503.14286: product ratio clipped to [0, 1] on negative advantages, on stale samples.

    The sign of the advantage picks the branch; scores here are 0 and 1, so they are centred first.
    """
    return live_run(
        "topr",
        [
            Term(
                loss=WeightedPolicyGradient(ratio_max=1.0, level="product", positive_unweighted=True),
                advantage="centered",
                aggregation="constant",
                aggregation_constant=_small.MAX_NEW_TOKENS,
            )
        ],
        max_age=4,
    )
