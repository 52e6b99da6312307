"""PSR: learn from right answers alone."""

from __future__ import annotations

from learner.config import ClippedSurrogate, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def psr() -> RunConfig:
    """PSR, arXiv:2506.01347: advantage 1 on right answers; wrong ones are left out."""
    return live_run("psr", [Term(loss=ClippedSurrogate(), advantage="positives_only")])
