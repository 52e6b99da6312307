"""REINFORCE++ without a baseline: scores whitened over all tokens of the batch."""

from __future__ import annotations

from learner.config import ClippedSurrogate, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def reinforce_pp_plain() -> RunConfig:
    """REINFORCE++, arXiv:2501.03262, in its first form: the batch, not the group, is what a score is compared with."""
    return live_run("reinforce_pp_plain", [Term(loss=ClippedSurrogate(), advantage="whitened")])
