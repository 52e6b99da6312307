"""f-DPG: distribution matching under a divergence between the two KLs."""

from __future__ import annotations

from learner.config import Term, TiltedTargetGradient
from orchestrator.config import RunConfig
from recipes._live import live_run


def fdpg() -> RunConfig:
    """f-DPG, arXiv:2302.08215, with Jensen-Shannon; temperature of the score 0.2 (ours)."""
    loss = TiltedTargetGradient(beta=0.2, divergence="js")
    return live_run("fdpg", [Term(loss=loss, aggregation="sequence", advantage="score")], max_age=4)
