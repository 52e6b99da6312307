"""GPG: a plain policy gradient whose scale makes up for answers without reward."""

from __future__ import annotations

from learner.config import PolicyGradient, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def gpg() -> RunConfig:
    """GPG, arXiv:2504.02546: no ratio and no clip."""
    return live_run("gpg", [Term(loss=PolicyGradient(), advantage="nonzero_scaled")])
