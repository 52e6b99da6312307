"""Diversity or Precision, its positive part: imitation whose reward is a power of the token's probability."""

from __future__ import annotations

from fractions import Fraction

from actors.config import ReplayConfig
from learner.config import NegativeLogLikelihood, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def diversity_precision() -> RunConfig:
    """Diversity or Precision, arXiv:2512.22955 (second-hand): exponent -0.25, said to lower the entropy.

    The form of the factor is our reading, not confirmed; rewards of the tokens not chosen are not here.
    """
    return live_run(
        "diversity_precision",
        [Term(loss=NegativeLogLikelihood(token_weight="power", exponent=-0.25), source="expert")],
        replay=ReplayConfig(groups_per_update=32, max_age=0, quotas={"expert": Fraction(1)}),
    )
