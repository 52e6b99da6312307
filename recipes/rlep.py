"""RLEP: two verified successes of the past are added to every group."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import own_past_run


def rlep() -> RunConfig:
    """RLEP, Kwai-Klear/RLEP: joint statistics over fresh and replayed. The successes are this run's,
    not an earlier one's.
    """
    return own_past_run("rlep", count=2, places="nobody")
