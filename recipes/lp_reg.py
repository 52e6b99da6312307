"""Lp-Reg: unlikely tokens that stand out from the noise are not pushed down."""

from __future__ import annotations

from learner.config import ProtectedSurrogate, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def lp_reg() -> RunConfig:
    """Lp-Reg, CarlanLark/Lp-Reg-dev: lowest 1%, min-p of 0.02, weight 1, ratio up to 10."""
    return live_run("lp_reg", [Term(loss=ProtectedSurrogate())])
