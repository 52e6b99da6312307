"""CISPO: the importance weight is clipped, no token loses its gradient."""

from __future__ import annotations

from learner.config import Term, WeightedPolicyGradient
from orchestrator.config import RunConfig
from recipes._live import live_run


def cispo() -> RunConfig:
    """CISPO, arXiv:2506.13585, with DAPO's bounds 0.8 and 1.28; the paper tunes the upper one alone."""
    return live_run("cispo", [Term(loss=WeightedPolicyGradient(ratio_min=0.8, ratio_max=1.28))])
