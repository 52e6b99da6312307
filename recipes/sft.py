"""Supervised fine-tuning on the expert's answers; the engines only evaluate."""

from __future__ import annotations

from fractions import Fraction

from actors.config import ReplayConfig
from learner.config import NegativeLogLikelihood, Term
from orchestrator.config import RunConfig
from recipes import _small


def sft() -> RunConfig:
    """Imitation alone: mean negative log-likelihood over the expert's tokens, nothing is sampled for training."""
    return RunConfig(
        name="sft",
        tasks=_small.TASKS,
        reward=_small.REWARD,
        terms=(Term(loss=NegativeLogLikelihood(), source="expert"),),
        rollout=_small.ROLLOUT,
        replay=ReplayConfig(groups_per_update=32, max_age=0, quotas={"expert": Fraction(1)}),
        learner=_small.adam(5e-5),
        evaluation=_small.EVALUATION,
        num_steps=60,
    )
