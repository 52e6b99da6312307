"""ReMix: each group is trained on twice, clipped around the current policy, between two policies that hold it."""

from __future__ import annotations

from actors.config import ReplayConfig
from learner.config import BehaviorKL, KLToReference, RecentredSurrogate, ResetConfig, Schedule, Term
from orchestrator.config import RunConfig
from recipes import _small
from recipes._guided import guided_run

STRENGTH = 0.01
"""Of both KL terms together; ours, as none is confirmed."""


def remix() -> RunConfig:
    """ReMix, arXiv:2507.06892 (second-hand): update-to-data ratio 2 on groups of the last two policies; the KL to the
    base counts 1 until step 50, then a tenth less every ten steps down to one half, the KL to the policy that sampled
    the rest.

    At step 50 the policy becomes the base. The switch to purely on-policy updates is not here.
    """
    base = Schedule(kind="stairs", start=STRENGTH, end=STRENGTH / 2, steps=50, hold=50, stair=10)
    sampled = Schedule(kind="stairs", start=0.0, end=STRENGTH / 2, steps=50, hold=50, stair=10)
    return guided_run(
        "remix",
        terms=(
            Term(loss=RecentredSurrogate(clip=0.2), advantage="centered"),
            Term(loss=KLToReference(), weight=base),
            Term(loss=BehaviorKL(), weight=sampled),
        ),
        learner=_small.adam(1e-5).model_copy(update={"resets": ResetConfig(at=(50,), optimizer=False)}),
        replay=ReplayConfig(groups_per_update=16, max_age=2, max_uses={"live": 2}),
    )
