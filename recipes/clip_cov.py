"""Clip-Cov: a few tokens whose log-prob and advantage go together are left out."""

from __future__ import annotations

from learner.config import CovarianceClippedSurrogate, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def clip_cov() -> RunConfig:
    """Clip-Cov, arXiv:2505.22617: a share of 2e-4 among covariances of 1 to 5."""
    return live_run("clip_cov", [Term(loss=CovarianceClippedSurrogate())])
