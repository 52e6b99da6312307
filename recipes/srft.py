"""SRFT: imitation and RL on demonstrations and own answers in one stage, weighed by the policy's entropy."""

from __future__ import annotations

from learner.config import EntropyWeightedLikelihood, EntropyWeightedPolicyGradient, ShapedLikelihood, Term
from orchestrator.config import RunConfig
from recipes._guided import guided_run


def srft() -> RunConfig:
    """SRFT, arXiv:2506.19767: 0.5 exp(-H) x imitation, RL on the demonstration as part of the group, own answers at
    +1 and -1 with successes at 0.1 exp(H).
    """
    return guided_run(
        "srft",
        rules=[{"rule": "splice_donors", "source": "expert", "places": "nobody"}],
        terms=(
            Term(loss=EntropyWeightedLikelihood(factor=0.5), source="expert"),
            Term(loss=ShapedLikelihood(shaping=None), source="expert", compared_with="group"),
            Term(
                loss=EntropyWeightedPolicyGradient(factor=0.1),
                advantage="sign_weighted",
                advantage_options={"positive": 1.0},
            ),
        ),
    )
