"""OPO: a baseline weighted by length."""

from __future__ import annotations

from learner.config import Term, WeightedPolicyGradient
from orchestrator.config import RunConfig
from recipes._live import live_run


def opo() -> RunConfig:
    """OPO, arXiv:2505.23585; the weighted score function stands in for the paper's exactly on-policy one."""
    return live_run("opo", [Term(loss=WeightedPolicyGradient(ratio_max=2.0), advantage="length_weighted")])
