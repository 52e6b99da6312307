"""Group equivalent preference: winners of a group over its losers, winners alike."""

from __future__ import annotations

from learner.config import ClippedSurrogate, GroupPreference, Schedule, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def gepo() -> RunConfig:
    """OORL, arXiv:2505.12723: the group preference at 0.01 beside GRPO's surrogate (published with REINFORCE++)."""
    return live_run(
        "gepo",
        [
            Term(loss=ClippedSurrogate()),
            Term(loss=GroupPreference(), aggregation="sequence", advantage="centered", weight=Schedule(start=0.01)),
        ],
    )
