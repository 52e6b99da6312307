"""GMPO: geometric mean of clipped ratios."""

from __future__ import annotations

from learner.config import GeometricMeanSurrogate, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def gmpo() -> RunConfig:
    """GMPO, arXiv:2507.20673: bounds of 0.4 nats on each token."""
    return live_run("gmpo", [Term(loss=GeometricMeanSurrogate(), aggregation="sequence")])
