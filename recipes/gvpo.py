"""GVPO: log-ratios of a group are regressed on its scores."""

from __future__ import annotations

from learner.config import GroupRegression, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def gvpo() -> RunConfig:
    """GVPO, arXiv:2504.19599: beta 0.1, against the policy at the start of the update, so that any samples will do."""
    return live_run(
        "gvpo",
        [Term(loss=GroupRegression(), aggregation="sequence", advantage="centered", ratio_to="proximal")],
        max_age=4,
    )
