"""ARPO: an own success of the same task is lent to a group that would teach nothing."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import OWN_PAST_IN_GROUP, WHOLE_GROUP, guided_run


def arpo_gui() -> RunConfig:
    """ARPO, dvlab-research/ARPO: up to eight successes per task, the first member is replaced, uniformly drawn.

    Recorded log-probs are kept; the released code recomputes them, which hides the age.
    """
    return guided_run(
        "arpo_gui",
        rules=[
            {"rule": "splice_donors", "source": "own_past", "when": "failed", "places": "first"},
            "stash_right",
            "drop_constant",
        ],
        terms=(WHOLE_GROUP, OWN_PAST_IN_GROUP),
    )
