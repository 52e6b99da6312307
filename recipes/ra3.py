"""RA3: rationales paid by how much more probable they make the text that follows, beside next-token training."""

from __future__ import annotations

from fractions import Fraction

from actors.config import LikelihoodConfig, ReplayConfig
from learner.config import NegativeLogLikelihood, Term
from orchestrator.config import RunConfig
from recipes._guided import ON_POLICY, guided_run
from rewards.config import RewardComponent, RewardConfig, TaskConfig

TASKS = TaskConfig(
    source="text_segments",
    num_train=2000,
    num_heldout=200,
    options={"missing_share": 0.0, "window": 1, "next_template": "{before}\n\nWhat is the rule, in a few words?"},
)


def ra3() -> RunConfig:
    """RA3 (abstract; the reward as reconstructed in reviews): gain in nats per token, minus a cost per rationale.

    One rationale per segment instead of one that lasts; next-token training sees the text without rationales, as a
    quarter of the batch. The words that are right already are only measured.
    """
    return guided_run(
        "ra3",
        tasks=TASKS,
        reward=RewardConfig(components={"said": RewardComponent(verifier="next_segment", weight=0.0)}),
        terms=(ON_POLICY, Term(loss=NegativeLogLikelihood(), source="expert")),
        replay=ReplayConfig(groups_per_update=16, max_age=1, quotas={"expert": Fraction(1, 4)}),
        likelihood=LikelihoodConfig(cost=0.01),
    )
