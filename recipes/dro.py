"""DRO: policy gradient without ratio, held by half the squared log-ratio of each token."""

from __future__ import annotations

from learner.config import PolicyGradient, Schedule, SquaredLogRatio, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def dro() -> RunConfig:
    """DRO, arXiv:2405.19107: tau = 0.1 (ours), the group's mean in place of its learned value, stale samples."""
    return live_run(
        "dro",
        [Term(loss=PolicyGradient(), advantage="centered"), Term(loss=SquaredLogRatio(), weight=Schedule(start=0.1))],
        max_age=4,
    )
