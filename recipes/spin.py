"""SPIN: the expert's answer is preferred to whatever the policy says."""

from __future__ import annotations

from learner.config import PairwisePreference, Term
from orchestrator.config import RunConfig
from recipes._guided import guided_run


def spin() -> RunConfig:
    """SPIN, arXiv:2401.01335: pairs of an expert's and an own answer, no scores; beta 0.1, sampled as training goes.

    The paper's opponent is the policy of the last iteration; here it is the one that samples.
    """
    term = Term(
        loss=PairwisePreference(),
        source="expert",
        against="live",
        aggregation="sequence",
        advantage="source_over_other",
    )
    rules = [{"rule": "splice_donors", "source": "expert", "places": "nobody"}]
    return guided_run("spin", rules=rules, terms=(term,))
