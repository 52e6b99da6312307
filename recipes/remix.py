"""ReMix, its reuse: each group is trained on twice, clipped around the current policy."""

from __future__ import annotations

from actors.config import ReplayConfig
from learner.config import RecentredSurrogate, Term
from orchestrator.config import RunConfig
from recipes._guided import guided_run


def remix() -> RunConfig:
    """ReMix, arXiv:2507.06892 (second-hand): update-to-data ratio 2 on groups of the last two policies.

    The switch to purely on-policy updates and the base that follows are not here.
    """
    return guided_run(
        "remix",
        terms=(Term(loss=RecentredSurrogate(clip=0.2), advantage="centered"),),
        replay=ReplayConfig(groups_per_update=16, max_age=2, max_uses={"live": 2}),
    )
