"""KL-Cov: tokens of the largest covariance pay for their distance to the sampling policy."""

from __future__ import annotations

from learner.config import CovariancePenaltySurrogate, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def kl_cov() -> RunConfig:
    """KL-Cov, arXiv:2505.22617: a share of 2e-4 pays 1 per nat."""
    return live_run("kl_cov", [Term(loss=CovariancePenaltySurrogate())])
