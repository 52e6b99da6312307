"""ORPO on the policy's own groups: imitation of the right answer and its odds; no reference model."""

from __future__ import annotations

from learner.config import OddsRatioPreference, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def orpo() -> RunConfig:
    """ORPO, arXiv:2403.07691: beta 0.1; pairs as in `dpo`."""
    return live_run("orpo", [Term(loss=OddsRatioPreference(), aggregation="sequence", advantage="score")], max_age=4)
