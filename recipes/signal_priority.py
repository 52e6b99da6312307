"""Prompts in proportion to the size of their advantages."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import guided_run


def signal_priority() -> RunConfig:
    """Prioritised sampling by rate x (1 - rate), the mass of group advantages; after PER."""
    return guided_run("signal_priority", rules=["drop_constant"], sampler={"name": "priority", "by": "signal"})
