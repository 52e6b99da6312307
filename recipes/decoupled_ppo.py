"""Decoupled PPO: the clip looks at the update alone, the whole step from sampling to training is a weight."""

from __future__ import annotations

from learner.config import ClippedSurrogate, Correction, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def decoupled_ppo() -> RunConfig:
    """Decoupled PPO, arXiv:2505.24298: weights without a bound; AReaL trains up to eight versions late."""
    correction = Correction(transform="identity")
    return live_run(
        "decoupled_ppo", [Term(loss=ClippedSurrogate(), ratio_to="proximal", correction=correction)], max_age=8
    )
