"""Contrastive policy gradient: differences of regularised scores within a group vanish."""

from __future__ import annotations

from learner.config import ContrastivePolicyGradient, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def copg() -> RunConfig:
    """CoPG, arXiv:2406.19185: all pairs of a group (beta 0.5 is ours); no sampling policy is read."""
    return live_run(
        "copg", [Term(loss=ContrastivePolicyGradient(), aggregation="sequence", advantage="score")], max_age=4
    )
