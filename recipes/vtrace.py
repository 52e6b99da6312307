"""V-trace without a critic: the group's mean is the value of every state."""

from __future__ import annotations

from learner.config import Term, TraceWeightedPolicyGradient
from orchestrator.config import RunConfig
from recipes._live import live_run


def vtrace() -> RunConfig:
    """V-trace, arXiv:1802.01561: bounds of 1, return minus the group's mean, on samples up to four steps old."""
    return live_run("vtrace", [Term(loss=TraceWeightedPolicyGradient(), advantage="centered")], max_age=4)
