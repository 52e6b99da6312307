"""SELF: only prompts whose greedy answer is wrong."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import guided_run


def self_interference() -> RunConfig:
    """SELF, mail-research/SELF-llm-interference: one greedy answer first; dropped prompts are refilled, not skipped."""
    return guided_run("self_interference", drop_greedily_solved=True)
