"""PACS: the policy's own log-ratio learns to predict whether an answer is right."""

from __future__ import annotations

from learner.config import OutcomeClassification, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def pacs() -> RunConfig:
    """PACS, arXiv:2509.02522: beta 1, the mean of the others subtracted, both outcomes of a group weighing the same."""
    return live_run(
        "pacs", [Term(loss=OutcomeClassification(), aggregation="sequence", advantage="score", ratio_to="proximal")]
    )
