"""DARS with breadth: hard prompts grow, and each update takes many more prompts."""

from __future__ import annotations

from actors.config import ReplayConfig
from orchestrator.config import RunConfig
from recipes._guided import guided_run


def dars_b() -> RunConfig:
    """DARS-B, yangzhch6/DARS: all prompts of a step in one update; here 48 instead of 16."""
    return guided_run(
        "dars_b",
        rules=[{"rule": "grow_hard", "schedule": "equal", "max_members": 32}, "drop_constant"],
        replay=ReplayConfig(groups_per_update=48, max_age=1),
    )
