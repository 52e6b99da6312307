"""GRPO: advantages from the group's own mean and deviation, no critic."""

from __future__ import annotations

from actors.config import ReplayConfig
from learner.config import ClippedSurrogate, Term
from orchestrator.config import RunConfig
from recipes import _small


def grpo() -> RunConfig:
    """GRPO, arXiv:2402.03300: group-relative advantages, equal clip bounds, mean over answers of token means.

    The KL term of the paper is off; add it with a second term `kl_to_reference`.
    """
    return RunConfig(
        name="grpo",
        tasks=_small.TASKS,
        reward=_small.REWARD,
        terms=(Term(loss=ClippedSurrogate(clip_low=0.2, clip_high=0.2), aggregation="sequence"),),
        rollout=_small.ROLLOUT,
        replay=ReplayConfig(groups_per_update=16, max_age=1),
        learner=_small.adam(1e-5),
        evaluation=_small.EVALUATION,
        num_steps=60,
    )
