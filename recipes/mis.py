"""Masked importance sampling: whole sequences go where sampling and training policy differ too much."""

from __future__ import annotations

from learner.config import ClippedSurrogate, Correction, Rejection, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def mis() -> RunConfig:
    """MIS as in SkyRL and verl: sequences whose geometric mean ratio leaves [0.99, 1.01] go, no other weight."""
    correction = Correction(transform="one", reject=(Rejection(statistic="ratio", over="mean", low=0.99, high=1.01),))
    return live_run("mis", [Term(loss=ClippedSurrogate(), ratio_to="proximal", correction=correction)], max_age=4)
