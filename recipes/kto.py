"""KTO on the policy's own groups: good answers above a reference point, bad ones below."""

from __future__ import annotations

from learner.config import ProspectPreference, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def kto() -> RunConfig:
    """KTO, arXiv:2402.01306: beta 0.1; good is over the group's mean score, z the mean of the update."""
    return live_run("kto", [Term(loss=ProspectPreference(), aggregation="sequence", advantage="centered")], max_age=4)
