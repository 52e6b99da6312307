"""ReMax: the score of the greedy answer is the baseline."""

from __future__ import annotations

from learner.config import PolicyGradient, Term
from orchestrator.config import RunConfig
from recipes import _small
from recipes._live import live_run


def remax() -> RunConfig:
    """ReMax, arXiv:2310.10505: one answer at temperature 0 beside those that are trained, no ratio, no deviation."""
    return live_run(
        "remax",
        [Term(loss=PolicyGradient(), advantage="over_greedy")],
        rollout=_small.ROLLOUT.model_copy(update={"greedy_baseline": True}),
    )
