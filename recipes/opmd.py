"""Policy mirror descent: a score function and a squared log-ratio per answer."""

from __future__ import annotations

from learner.config import PolicyGradient, Schedule, SquaredLogRatio, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def opmd() -> RunConfig:
    """Kimi k1.5, arXiv:2501.12599, section 2.3: no ratio and no clip, so samples may be stale; strength 0.1."""
    return live_run(
        "opmd",
        [
            Term(loss=PolicyGradient(), advantage="centered", aggregation="constant", aggregation_constant=1.0),
            Term(
                loss=SquaredLogRatio(level="product"),
                weight=Schedule(start=0.1),
                aggregation="constant",
                aggregation_constant=1.0,
            ),
        ],
        max_age=4,
    )
