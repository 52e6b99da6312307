"""LUFFY: one expert answer sits in every group and shares its baseline."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import EXPERT_IN_GROUP, WHOLE_GROUP, guided_run


def luffy() -> RunConfig:
    """LUFFY, arXiv:2504.14945: 1 expert + 7 own answers, no deviation, shaped likelihood with 0.1."""
    return guided_run(
        "luffy",
        rules=[{"rule": "splice_donors", "source": "expert", "places": "first"}, "drop_constant"],
        terms=(WHOLE_GROUP, EXPERT_IN_GROUP),
    )
