"""REINFORCE++ with baseline: centred scores, whitened over all tokens of the batch."""

from __future__ import annotations

from learner.config import ClippedSurrogate, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def reinforce_pp() -> RunConfig:
    """REINFORCE++ with baseline, arXiv:2501.03262."""
    return live_run("reinforce_pp", [Term(loss=ClippedSurrogate(), advantage="centered_whitened")])
