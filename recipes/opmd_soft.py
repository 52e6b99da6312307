"""Policy mirror descent with the soft maximum of the group as baseline."""

from __future__ import annotations

from learner.config import PolicyGradient, Schedule, SquaredLogRatio, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def opmd_soft() -> RunConfig:
    """OPMD, as in Trinity-RFT: log-mean-exp baseline at temperature 0.1, strength 0.1; sums over tokens."""
    sums = {"aggregation": "constant", "aggregation_constant": 1.0}
    return live_run(
        "opmd_soft",
        [
            Term(loss=PolicyGradient(), advantage="log_mean_exp", advantage_options={"temperature": 0.1}, **sums),
            Term(loss=SquaredLogRatio(level="product"), weight=Schedule(start=0.1), **sums),
        ],
        max_age=4,
    )
