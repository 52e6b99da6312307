"""DPPO: a token is left out once its probability, not its ratio, has moved far."""

from __future__ import annotations

from learner.config import DivergenceMaskedPolicyGradient, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def dppo() -> RunConfig:
    """DPPO, arXiv:2602.04879: binary total variation with bounds of 0.2, on stale samples without a correction."""
    return live_run("dppo", [Term(loss=DivergenceMaskedPolicyGradient())], max_age=4)
