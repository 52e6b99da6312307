"""BEPA, its cache: the latest own success joins groups that fail."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import own_past_run


def bepa() -> RunConfig:
    """BEPA (abstract, second-hand rule): the newest success is the donor; re-rolling expert plans is not here."""
    return own_past_run("bepa", when="failed", pick="newest")
