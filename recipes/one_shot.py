"""1-shot RLVR: the one prompt whose accuracy moves most, over and over."""

from __future__ import annotations

from learner.config import EntropyBonus, Schedule, Term
from orchestrator.config import RunConfig
from recipes._guided import ON_POLICY, guided_run


def one_shot() -> RunConfig:
    """1-shot RLVR, ypwang61/One-Shot-RLVR: one round over all prompts, then the top one by variance; entropy bonus."""
    return guided_run(
        "one_shot",
        sampler={"name": "fixed", "count": 1, "explore_rounds": 1, "round_size": 256},
        terms=(ON_POLICY, Term(loss=EntropyBonus(), weight=Schedule(start=0.001))),
    )
