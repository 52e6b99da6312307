"""AMPO: the expert answers the policy understands best replace wrong ones where nobody is right."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import EXPERT_IN_GROUP, WHOLE_GROUP, guided_run


def ampo() -> RunConfig:
    """AMPO, SII-Enigma/AMPO: the two donors whose reasoning makes the reference answer most probable.

    Donors are judged, not taken as right.
    """
    return guided_run(
        "ampo",
        rules=[
            {"rule": "splice_donors", "source": "expert", "when": "failed", "count": 2, "pick": "understood"},
            "drop_constant",
        ],
        terms=(WHOLE_GROUP, EXPERT_IN_GROUP),
    )
