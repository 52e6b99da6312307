"""BEPA, its cache: the latest own success joins groups that fail."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import OWN_PAST_IN_GROUP, WHOLE_GROUP, guided_run


def bepa() -> RunConfig:
    """BEPA (abstract, second-hand rule): the newest success is the donor; re-rolling expert plans is not here."""
    return guided_run(
        "bepa",
        rules=[
            {"rule": "splice_donors", "source": "own_past", "when": "failed", "pick": "newest"},
            "stash_right",
            "drop_constant",
        ],
        terms=(WHOLE_GROUP, OWN_PAST_IN_GROUP),
    )
