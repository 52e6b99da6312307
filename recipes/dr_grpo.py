"""Dr. GRPO: no division by deviation or by length."""

from __future__ import annotations

from learner.config import ClippedSurrogate, Term
from orchestrator.config import RunConfig
from recipes import _small
from recipes._live import live_run


def dr_grpo() -> RunConfig:
    """Dr. GRPO, arXiv:2503.20783: centred scores, and a constant, the longest answer, for its length."""
    return live_run(
        "dr_grpo",
        [
            Term(
                loss=ClippedSurrogate(),
                advantage="centered",
                aggregation="constant",
                aggregation_constant=_small.MAX_NEW_TOKENS,
            )
        ],
    )
