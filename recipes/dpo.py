"""DPO on the policy's own groups: right answers preferred to wrong ones."""

from __future__ import annotations

from learner.config import PairwisePreference, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def dpo() -> RunConfig:
    """DPO, arXiv:2305.18290: beta 0.1; all pairs of a group with different scores, sampled as training goes."""
    return live_run("dpo", [Term(loss=PairwisePreference(), aggregation="sequence", advantage="score")], max_age=4)
