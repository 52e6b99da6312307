"""GRPO with a KL penalty that is right on stale samples."""

from __future__ import annotations

from learner.config import ClippedSurrogate, ImportanceWeightedKL, Schedule, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def unbiased_kl() -> RunConfig:
    """The unbiased KL estimate of DeepSeek-V3.2, arXiv:2512.02556, at 0.001 (ours) beside GRPO's surrogate."""
    return live_run(
        "unbiased_kl",
        [Term(loss=ClippedSurrogate()), Term(loss=ImportanceWeightedKL(), weight=Schedule(start=0.001))],
        max_age=4,
    )
