"""R2VPO, primal-dual: the weight of the ratio's second moment follows how far it exceeds its bound."""

from __future__ import annotations

from learner.config import RatioSurrogate, RatioVariance, Term
from learner.schedules.config import DualAscent
from orchestrator.config import RunConfig
from recipes._live import live_run


def r2vpo_dual() -> RunConfig:
    """R2VPO with dual ascent, second-hand: the weight starts at 0.04; bound and step size are ours, as the paper's are
    not confirmed."""
    dual = DualAscent(start=0.04, measure="loss", target=0.02, rate=0.5)
    return live_run("r2vpo_dual", [Term(loss=RatioSurrogate()), Term(loss=RatioVariance(), controller=dual)], max_age=4)
