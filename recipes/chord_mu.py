"""CHORD-mu: imitation of an expert fades into RL along a cosine."""

from __future__ import annotations

from fractions import Fraction

from actors.config import ReplayConfig
from learner.config import ClippedSurrogate, NegativeLogLikelihood, Schedule, Term
from orchestrator.config import RunConfig
from recipes import _small

MU = Schedule(kind="cosine", start=0.9, end=0.05, steps=200)
"""Weight of imitation; the paper's values. RL weighs 1 - mu."""


def chord_mu() -> RunConfig:
    """CHORD-mu, arXiv:2508.11408: (1 - mu) x clipped surrogate on own answers + mu x NLL on the expert's.

    Each term is normalised by its own token count, so the mixture does not depend on how many expert groups a batch
    holds. Half of the groups are expert answers, one answer each.
    """
    return RunConfig(
        name="chord_mu",
        tasks=_small.TASKS,
        reward=_small.REWARD,
        terms=(
            Term(loss=ClippedSurrogate(clip_low=0.2, clip_high=0.2), source="live", weight=MU.complement()),
            Term(loss=NegativeLogLikelihood(), source="expert", weight=MU),
        ),
        rollout=_small.ROLLOUT,
        replay=ReplayConfig(groups_per_update=32, max_age=1, quotas={"expert": Fraction(1, 2)}),
        learner=_small.adam(3e-5),
        evaluation=_small.EVALUATION,
        num_steps=60,
    )
