"""ASPO: unlikely tokens of right answers weigh more, not less."""

from __future__ import annotations

from learner.config import InverseRatioSurrogate, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def aspo() -> RunConfig:
    """ASPO, arXiv:2510.06062: inverse ratio where the advantage is positive, capped at 3; bounds 0.2 and 0.28."""
    return live_run("aspo", [Term(loss=InverseRatioSurrogate())])
