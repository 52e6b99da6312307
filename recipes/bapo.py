"""BAPO: the bounds of the ratio move until good tokens weigh enough beside bad ones."""

from __future__ import annotations

from learner.config import QuotientClippedSurrogate, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def bapo() -> RunConfig:
    """BAPO, WooooDyy/BAPO: target 0.5, bounds from (0.6, 1.2) up to (0.8, 2.0), on stale samples."""
    return live_run("bapo", [Term(loss=QuotientClippedSurrogate())], max_age=4)
