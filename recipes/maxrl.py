"""MaxRL: the harder the task, the larger its weight."""

from __future__ import annotations

from learner.config import ClippedSurrogate, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def maxrl() -> RunConfig:
    """MaxRL, arXiv:2602.02710: centred scores over the mean score of the group."""
    return live_run("maxrl", [Term(loss=ClippedSurrogate(), advantage="max_likelihood")])
