"""IPO on the policy's own groups: a fixed margin between right and wrong answers."""

from __future__ import annotations

from learner.config import PairwisePreference, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def ipo() -> RunConfig:
    """IPO, arXiv:2310.12036: beta 0.1, on log-ratios per token as in published code; pairs as in `dpo`."""
    return live_run(
        "ipo", [Term(loss=PairwisePreference(form="squared"), aggregation="sequence", advantage="score")], max_age=4
    )
