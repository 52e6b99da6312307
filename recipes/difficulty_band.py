"""Prompts between too hard and too easy, before and after the rollout."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import guided_run


def difficulty_band() -> RunConfig:
    """Accuracy band [0.125, 0.875] of SwS, MasterVito/SwS, as a sampler and as a gate."""
    return guided_run(
        "difficulty_band",
        sampler={"name": "band", "low": 0.125, "high": 0.875},
        rules=[{"rule": "drop_rate", "low": 0.125, "high": 0.875}],
    )
