"""MDPO: no clip, and a KL to the policy that sampled whose weight grows as training goes on."""

from __future__ import annotations

from learner.config import BehaviorKL, RatioSurrogate, Schedule, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def mdpo() -> RunConfig:
    """On-policy MDPO, arXiv:2005.09814: weight 1 / t of the KL, t falling linearly from 1 (to 0.05, where the paper
    goes on to 0).
    """
    weight = Schedule(kind="inverse", start=1.0, end=0.05, steps=60)
    return live_run("mdpo", [Term(loss=RatioSurrogate()), Term(loss=BehaviorKL(), weight=weight)], max_age=4)
