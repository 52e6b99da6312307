"""The usual two stages as one run: imitation up to a step, reinforcement learning after it."""

from __future__ import annotations

from fractions import Fraction

from actors.config import ReplayConfig
from learner.config import ClippedSurrogate, NegativeLogLikelihood, Schedule, Term
from orchestrator.config import RunConfig
from recipes import _small

IMITATION = Schedule(kind="step", start=1.0, end=0.0, steps=30)
"""1 before step 30, 0 from there on; RL is its complement."""


def sft_then_rl() -> RunConfig:
    """SFT, then GRPO, by two step schedules. Batches keep their shape: the resting term weighs 0."""
    return RunConfig(
        name="sft_then_rl",
        tasks=_small.TASKS,
        reward=_small.REWARD,
        terms=(
            Term(loss=ClippedSurrogate(clip_low=0.2, clip_high=0.2), source="live", weight=IMITATION.complement()),
            Term(loss=NegativeLogLikelihood(), source="expert", weight=IMITATION),
        ),
        rollout=_small.ROLLOUT,
        replay=ReplayConfig(groups_per_update=32, max_age=1, quotas={"expert": Fraction(1, 2)}),
        learner=_small.adam(3e-5),
        evaluation=_small.EVALUATION,
        num_steps=60,
    )
