"""ExGRPO: own successes of middling prompts, the surest first; solved prompts retire."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import OWN_PAST_IN_GROUP, WHOLE_GROUP, guided_run


def exgrpo() -> RunConfig:
    """ExGRPO, arXiv:2510.02245: 1 stored + 7 fresh, buckets by right answers, shaped ratio with 0.1.

    Lowest mean token entropy under the current policy is estimated by the stored answer's own log-prob under it.
    Replay begins once prompts are answered right at a rate of 0.35 on average.
    """
    return guided_run(
        "exgrpo",
        sampler={"name": "buckets", "group_size": 8},
        rules=[
            {"rule": "stash_right", "high": 0.9},
            {"rule": "retire_solved", "rate": 1.0},
            {"rule": "splice_donors", "source": "own_past", "pick": "surest", "places": "first"},
            "drop_constant",
        ],
        donors_from=0.35,
        terms=(WHOLE_GROUP, OWN_PAST_IN_GROUP),
    )
