"""DARS, equal treatment: hard prompts grow until their advantages weigh as much as middling ones."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import guided_run


def dars_et() -> RunConfig:
    """DARS, yangzhch6/DARS: 8 answers, at most 32 in all, mean-centred."""
    return guided_run("dars_et", rules=[{"rule": "grow_hard", "schedule": "equal", "max_members": 32}, "drop_constant"])
