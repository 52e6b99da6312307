"""RL-PLUS: an expert answer in every group under the ratio to a mixture; unlikely tokens count more."""

from __future__ import annotations

from learner.config import EntropyBonus, MixtureRatio, Schedule, Term
from orchestrator.config import RunConfig
from recipes._guided import WHOLE_GROUP, guided_run


def rl_plus() -> RunConfig:
    """RL-PLUS, arXiv:2508.00222: 1 expert + 7 own answers, no deviation, no clip, entropy bonus 0.001."""
    expert = Term(loss=MixtureRatio(exploration=0.5), source="expert", advantage="centered", compared_with="group")
    return guided_run(
        "rl_plus",
        rules=[{"rule": "splice_donors", "source": "expert", "places": "first"}, "drop_constant"],
        terms=(WHOLE_GROUP, expert, Term(loss=EntropyBonus(), weight=Schedule(start=0.001))),
    )
