"""CHORD-phi: a small constant share of imitation, weighted per token by how unsure the policy is."""

from __future__ import annotations

from fractions import Fraction

from actors.config import ReplayConfig
from learner.config import ClippedSurrogate, NegativeLogLikelihood, Schedule, Term
from orchestrator.config import RunConfig
from recipes import _small

MU = Schedule(start=0.1)
"""Weight of imitation; the paper's value."""


def chord_phi() -> RunConfig:
    """CHORD-phi, arXiv:2508.11408: the expert's tokens weigh p(1 - p), so neither known nor hopeless ones pull."""
    return RunConfig(
        name="chord_phi",
        tasks=_small.TASKS,
        reward=_small.REWARD,
        terms=(
            Term(loss=ClippedSurrogate(clip_low=0.2, clip_high=0.2), source="live", weight=MU.complement()),
            Term(loss=NegativeLogLikelihood(token_weight="phi"), source="expert", weight=MU),
        ),
        rollout=_small.ROLLOUT,
        replay=ReplayConfig(groups_per_update=32, max_age=1, quotas={"expert": Fraction(1, 2)}),
        learner=_small.adam(3e-5),
        evaluation=_small.EVALUATION,
        num_steps=60,
    )
