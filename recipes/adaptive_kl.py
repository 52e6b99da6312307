"""GRPO with a KL penalty whose weight keeps the policy at a chosen distance from the reference."""

from __future__ import annotations

from learner.config import ClippedSurrogate, KLToReference, Term
from learner.schedules.config import AdaptiveKL
from orchestrator.config import RunConfig
from recipes._live import live_run


def adaptive_kl() -> RunConfig:
    """The adaptive controller of arXiv:1909.08593 around GRPO; target, first weight and horizon belong to the small
    setting."""
    controller = AdaptiveKL(start=1e-3, target=0.02, horizon=2560)
    return live_run("adaptive_kl", [Term(loss=ClippedSurrogate()), Term(loss=KLToReference(), controller=controller)])
