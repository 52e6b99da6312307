"""M2PO: bounds from the second moment of the harmful log-ratios, for very old samples."""

from __future__ import annotations

from learner.config import MomentClippedSurrogate, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def m2po() -> RunConfig:
    """M2PO, Infini-AI-Lab/M2PO: budget 0.04."""
    return live_run("m2po", [Term(loss=MomentClippedSurrogate())], max_age=16)
