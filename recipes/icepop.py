"""GRPO without the tokens whose probability differs most between sampling and training policy."""

from __future__ import annotations

from learner.config import ClippedSurrogate, Correction, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def icepop() -> RunConfig:
    """IcePop: weights inside [0.5, 5], 0 outside, and such tokens stay in the denominator."""
    return live_run(
        "icepop",
        [
            Term(
                loss=ClippedSurrogate(), ratio_to="proximal", correction=Correction(transform="band", low=0.5, high=5.0)
            )
        ],
        max_age=4,
    )
