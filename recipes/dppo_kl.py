"""DPPO with a KL divergence: a token is left out once the step from sampling has cost too many nats."""

from __future__ import annotations

from learner.config import DivergenceMaskedPolicyGradient, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def dppo_kl() -> RunConfig:
    """DPPO, arXiv:2602.04879, KL of two outcomes with bounds of 0.05 nats (ours), on stale samples."""
    loss = DivergenceMaskedPolicyGradient(divergence="kl", max_rise=0.05, max_fall=0.05)
    return live_run("dppo_kl", [Term(loss=loss)], max_age=4)
