"""Prioritised sampling: prompts in proportion to how often they are answered wrong."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import guided_run


def kimi_sampling() -> RunConfig:
    """Kimi k1.5, arXiv:2501.12599 (second-hand): 1 - success rate, with a floor."""
    return guided_run("kimi_sampling", sampler={"name": "priority", "by": "failure"})
