"""SwS, its budgets: each category is drawn by its share of failures."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import guided_run


def sws() -> RunConfig:
    """SwS, MasterVito/SwS: more of what the run cannot do. The generator has all problems, so none are
    written; `rewards/synthesis.py` holds budgets, concept sets and gates for data that has not.
    """
    return guided_run(
        "sws",
        sampler={"name": "mixture", "tag": "coverage", "by_failure": True},
        rules=[{"rule": "drop_rate", "low": 0.125, "high": 0.875}],
    )
