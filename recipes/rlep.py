"""RLEP: two verified successes of the past are added to every group."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import OWN_PAST_IN_GROUP, WHOLE_GROUP, guided_run


def rlep() -> RunConfig:
    """RLEP, Kwai-Klear/RLEP: joint statistics over fresh and replayed. The successes are this run's,
    not an earlier one's.
    """
    return guided_run(
        "rlep",
        rules=[
            {"rule": "splice_donors", "source": "own_past", "count": 2, "places": "nobody"},
            "stash_right",
            "drop_constant",
        ],
        terms=(WHOLE_GROUP, OWN_PAST_IN_GROUP),
    )
