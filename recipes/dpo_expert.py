"""DPO across sources: the expert's answer is preferred to the policy's own failures."""

from __future__ import annotations

from learner.config import PairwisePreference, Term
from orchestrator.config import RunConfig
from recipes._guided import guided_run


def dpo_expert() -> RunConfig:
    """DPO, arXiv:2305.18290, with pairs as in SPIN, arXiv:2401.01335: chosen is the expert's, rejected what the policy
    has just sampled, here only where it is wrong; beta 0.1.
    """
    term = Term(
        loss=PairwisePreference(),
        source="expert",
        against="live",
        aggregation="sequence",
        advantage="source_over_other",
        advantage_options={"reject_below": 1.0},
    )
    rules = [{"rule": "splice_donors", "source": "expert", "places": "nobody"}]
    return guided_run("dpo_expert", rules=rules, terms=(term,))
