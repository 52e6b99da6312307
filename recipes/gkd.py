"""GKD: the whole distribution of a larger model, on the policy's own answers."""

from __future__ import annotations

from learner.config import TeacherDivergence, Term
from orchestrator.config import RunConfig
from recipes import _small
from recipes._live import live_run
from recipes.opd import TEACHER


def gkd() -> RunConfig:
    """GKD, arXiv:2306.13649: generalised Jensen-Shannon divergence with mixture 0.5, all data from the policy."""
    return live_run(
        "gkd",
        [Term(loss=TeacherDivergence(mixture=0.5))],
        learner=_small.adam(1e-5).model_copy(update={"teacher": TEACHER}),
    )
