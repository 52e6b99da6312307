"""R2VPO: a penalty on the variance of the ratio in place of the clip."""

from __future__ import annotations

from learner.config import RatioSurrogate, RatioVariance, Schedule, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def r2vpo() -> RunConfig:
    """R2VPO, primal form with a fixed multiplier of 0.04, from its abstract and a third-party account; no dual step."""
    return live_run(
        "r2vpo", [Term(loss=RatioSurrogate()), Term(loss=RatioVariance(), weight=Schedule(start=0.04))], max_age=4
    )
