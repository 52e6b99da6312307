"""DPO on recorded pairs: for each covered problem a chosen and a rejected answer."""

from __future__ import annotations

from fractions import Fraction

from actors.config import ReplayConfig
from learner.config import PairwisePreference, Term
from orchestrator.config import RunConfig
from recipes import _small
from recipes._live import live_run


def dpo_recorded() -> RunConfig:
    """DPO, arXiv:2305.18290, as published: beta 0.1 on a fixed set of pairs; nothing is sampled for training.

    A file of pairs is read with `tasks.options.response_column=chosen` and `rejected_column=rejected`. Here the
    rejected answer is off by 7, which is ours.
    """
    return live_run(
        "dpo_recorded",
        [Term(loss=PairwisePreference(), source="expert", aggregation="sequence", advantage="score")],
        tasks=_small.TASKS.model_copy(update={"options": {**_small.TASKS.options, "rejected_offset": 7}}),
        replay=ReplayConfig(groups_per_update=32, max_age=0, quotas={"expert": Fraction(1)}),
    )
