"""DPH-RL: prompts the policy masters are rehearsed under a mass-covering divergence, the others are trained by RL."""

from __future__ import annotations

from learner.config import ClippedSurrogate, RehearsalDivergence, Schedule, Term
from orchestrator.config import RunConfig
from recipes._guided import guided_run


def dph_rl() -> RunConfig:
    """DPH-RL, arXiv:2509.07430: forward KL at 0.03 on stored answers, clip_high 0.28 and no KL on the others.

    The paper stores answers of the initial policy before training; here those of groups that are nearly all right are
    stored as training goes, each with the log-probs of the policy that gave it.
    """
    return guided_run(
        "dph_rl",
        rules=[
            {"rule": "splice_donors", "source": "own_past", "places": "nobody", "table": "mastered"},
            {"rule": "stash_right", "table": "mastered", "low": 0.8},
        ],
        terms=(
            Term(loss=ClippedSurrogate(clip_high=0.28)),
            Term(loss=RehearsalDivergence(generator="forward"), source="own_past", weight=Schedule(start=0.03)),
        ),
    )
