"""GRPO for pass@k: only what the best answer adds to the second best counts."""

from __future__ import annotations

from learner.config import ClippedSurrogate, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def grpo_passk() -> RunConfig:
    """Pass@k training, arXiv:2503.19595 in the form of verl: the best of a group earns its lead, the others nothing."""
    return live_run("grpo_passk", [Term(loss=ClippedSurrogate(), advantage="best_over_second")])
