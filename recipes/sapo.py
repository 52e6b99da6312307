"""SAPO: a sigmoid gate in place of the clip."""

from __future__ import annotations

from learner.config import SoftGateSurrogate, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def sapo() -> RunConfig:
    """SAPO, arXiv:2511.20347: temperatures 1.0 and 1.05."""
    return live_run("sapo", [Term(loss=SoftGateSurrogate(), aggregation="sequence")])
