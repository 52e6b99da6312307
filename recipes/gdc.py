"""Distributional control: the policy approaches its own start, tilted by the score."""

from __future__ import annotations

from learner.config import Term, TiltedTargetGradient
from orchestrator.config import RunConfig
from recipes._live import live_run


def gdc() -> RunConfig:
    """Distributional policy gradient: KL(target || policy), temperature of the score 0.2 (ours), stale samples.

    GDC, arXiv:2012.11635. The normaliser is estimated in each group.
    """
    loss = TiltedTargetGradient(beta=0.2, divergence="kl")
    return live_run("gdc", [Term(loss=loss, aggregation="sequence", advantage="score")], max_age=4)
