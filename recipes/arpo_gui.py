"""ARPO: an own success of the same task is lent to a group that would teach nothing."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import own_past_run


def arpo_gui() -> RunConfig:
    """ARPO, dvlab-research/ARPO: up to eight successes per task, the first member is replaced, uniformly drawn.

    Recorded log-probs are kept; the released code recomputes them, which hides the age.
    """
    return own_past_run("arpo_gui", when="failed", places="first")
