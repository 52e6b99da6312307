"""The run that recipes of one live source share: what differs between them is their terms."""

from __future__ import annotations

from collections.abc import Sequence

from actors.config import ReplayConfig
from learner.config import Term
from orchestrator.config import RunConfig
from recipes import _small


def live_run(name: str, terms: Sequence[Term], *, max_age: int = 1) -> RunConfig:
    """GRPO's small setting with other terms.

    Args:
        max_age: committed steps a group may lie between sampling and training.
    """
    return RunConfig(
        name=name,
        tasks=_small.TASKS,
        reward=_small.REWARD,
        terms=tuple(terms),
        rollout=_small.ROLLOUT,
        replay=ReplayConfig(groups_per_update=16, max_age=max_age),
        learner=_small.adam(1e-5),
        evaluation=_small.EVALUATION,
        num_steps=60,
    )
