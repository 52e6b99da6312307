"""AsymRE: a baseline shifted down, so that failures of stale data push less."""

from __future__ import annotations

from learner.config import PolicyGradient, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def asymre() -> RunConfig:
    """AsymRE, arXiv:2506.20520: no ratio, shift -0.1."""
    return live_run(
        "asymre", [Term(loss=PolicyGradient(), advantage="shifted", advantage_options={"shift": -0.1})], max_age=4
    )
