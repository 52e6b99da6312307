"""OTB: REINFORCE with the baseline of least variance at each position of a group."""

from __future__ import annotations

from learner.config import OptimalBaselineGradient, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def otb() -> RunConfig:
    """Optimal token baseline, as in verl; reads the sum of squared probabilities at each token."""
    return live_run("otb", [Term(loss=OptimalBaselineGradient(), advantage="score")])
