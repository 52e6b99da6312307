"""DARS, hardness weighted: hard prompts grow until they have about as many successes as the others."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import guided_run


def dars_hw() -> RunConfig:
    """DARS, yangzhch6/DARS: 8 answers, at most 64 in all, mean-centred."""
    return guided_run(
        "dars_hw", rules=[{"rule": "grow_hard", "schedule": "hardness", "max_members": 64}, "drop_constant"]
    )
