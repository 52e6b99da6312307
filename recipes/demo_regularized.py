"""Demonstration-regularised RL: the score minus the distance to a policy cloned from demonstrations."""

from __future__ import annotations

from learner.config import KLToReference, PolicyGradient, Schedule, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def demo_regularized() -> RunConfig:
    """Policy gradient and 0.1 x KL to the initial weights; start it from what `sft` has made of the model.

    The theory maximises E[R] - lambda KL(policy || clone); k2 is the estimator whose gradient is that of this KL on
    fresh samples. lambda = 0.1 is ours.
    """
    return live_run(
        "demo_regularized",
        [
            Term(loss=PolicyGradient(), advantage="centered"),
            Term(loss=KLToReference(estimator="k2"), weight=Schedule(start=0.1)),
        ],
        max_age=0,
    )
