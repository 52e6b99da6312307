"""The run that recipes of live rollouts share: GRPO's small setting, in which each states what it changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from actors.config import ReplayConfig
from learner.config import Term
from orchestrator.config import RunConfig
from recipes import _small


def live_run(name: str, terms: Sequence[Term], *, max_age: int = 1, **sections: Any) -> RunConfig:
    """GRPO's small setting with other terms.

    Args:
        max_age: committed steps a group may lie between sampling and training.
        sections: of the configuration, in place of the small setting's.
    """
    setting: dict[str, Any] = {
        "tasks": _small.TASKS,
        "reward": _small.REWARD,
        "rollout": _small.ROLLOUT,
        "replay": ReplayConfig(groups_per_update=16, max_age=max_age),
        "learner": _small.adam(1e-5),
        "evaluation": _small.EVALUATION,
        "num_steps": 60,
    }
    return RunConfig(name=name, terms=tuple(terms), **(setting | sections))
