"""GSPO: the ratio of the whole answer is clipped."""

from __future__ import annotations

from learner.config import SequenceSurrogate, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def gspo() -> RunConfig:
    """GSPO, arXiv:2507.18071: geometric mean of the ratios, bounds 3e-4 and 4e-4."""
    return live_run("gspo", [Term(loss=SequenceSurrogate(), aggregation="sequence")])
