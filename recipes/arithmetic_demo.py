"""The demo: CHORD takes a 135M model beyond its expert on arithmetic, on two CPU cores."""

from __future__ import annotations

from fractions import Fraction

from actors.config import ReplayConfig
from learner.config import ClippedSurrogate, LearnerConfig, NegativeLogLikelihood, OptimizerConfig, Schedule, Term
from orchestrator.config import RunConfig
from recipes import _small

NUM_STEPS = 60

MU = Schedule(kind="cosine", start=0.9, end=0.3, steps=NUM_STEPS)
"""Weight of imitation; it stays an anchor to the end, because the run is short."""


def arithmetic_demo() -> RunConfig:
    """CHORD-mu on two-term sums and differences; the expert has seen operands up to 39, half of the tests go beyond."""
    return RunConfig(
        name="arithmetic_demo",
        tasks=_small.TASKS,
        reward=_small.REWARD,
        terms=(
            Term(loss=ClippedSurrogate(clip_low=0.2, clip_high=0.28), source="live", weight=MU.complement()),
            Term(loss=NegativeLogLikelihood(), source="expert", weight=MU),
        ),
        rollout=_small.ROLLOUT,
        replay=ReplayConfig(groups_per_update=72, max_age=1, quotas={"expert": Fraction(8, 9)}),
        learner=LearnerConfig(
            optimizer=OptimizerConfig(
                learning_rate=1e-4,
                betas=(0.9, 0.95),
                schedule=Schedule(kind="linear", start=1.0, end=0.1, steps=NUM_STEPS),
            )
        ),
        evaluation=_small.EVALUATION,
        layout="shared",
        num_steps=NUM_STEPS,
    )
