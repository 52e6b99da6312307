"""Fission-GRPO: every failed answer becomes a new task with its error in the prompt."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import guided_run


def fission_grpo() -> RunConfig:
    """Fission-GRPO (abstract), in one turn: recovery groups are groups of their own, the newest error first."""
    return guided_run("fission_grpo", rules=["fork_failed", "drop_constant"])
