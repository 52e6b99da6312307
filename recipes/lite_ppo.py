"""Lite PPO: mean of the group, deviation of the batch, tokens as the unit of the mean."""

from __future__ import annotations

from learner.config import ClippedSurrogate, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def lite_ppo() -> RunConfig:
    """Lite PPO, arXiv:2508.08221."""
    return live_run("lite_ppo", [Term(loss=ClippedSurrogate(), advantage="batch_relative")])
