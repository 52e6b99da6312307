"""ReRe, its reward and loss: wrong answers pay more, the likelier they were."""

from __future__ import annotations

from learner.config import KLToReference, PolicyGradient, Schedule, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def rere() -> RunConfig:
    """ReRe, sober-clever/ReRe: ranking penalty in groups with a right answer, no ratio, k3 at 0.001.

    The constrained beam over items is not here: answers are sampled, and their likelihood ranks them.
    """
    return live_run(
        "rere",
        [
            Term(loss=PolicyGradient(), advantage="rank_penalised", aggregation="sequence"),
            Term(loss=KLToReference(), weight=Schedule(start=0.001), aggregation="sequence"),
        ],
    )
