"""DAPO: clip higher, drop groups without signal, count tokens instead of answers, punish overlong answers softly."""

from __future__ import annotations

from actors.config import ReplayConfig
from learner.config import ClippedSurrogate, Term
from orchestrator.config import RunConfig
from recipes import _small
from rewards.config import RewardComponent, RewardConfig

OVERLONG = RewardComponent(
    verifier="soft_overlong",
    weight=0.5,
    options={"max_tokens": _small.MAX_NEW_TOKENS, "buffer_tokens": _small.MAX_NEW_TOKENS // 4},
    required=False,
)
"""The paper's punishment is 1 beside rewards of +1 and -1; rewards here are 1 and 0, so it counts half."""


def dapo() -> RunConfig:
    """DAPO, arXiv:2503.14476: bounds 0.2 and 0.28, dynamic sampling, token-level loss, soft overlong punishment.

    Dynamic sampling: groups whose answers are all right or all wrong give their ticket back, and another task is
    sampled instead. The rule looks at correctness alone: the punishment makes scores of an all-right group differ.
    """
    return RunConfig(
        name="dapo",
        tasks=_small.TASKS,
        reward=RewardConfig(components={**_small.REWARD.components, "overlong": OVERLONG}),
        terms=(Term(loss=ClippedSurrogate(clip_low=0.2, clip_high=0.28), aggregation="token"),),
        rollout=_small.ROLLOUT.model_copy(update={"rules": ({"rule": "drop_constant", "component": "correct"},)}),
        replay=ReplayConfig(groups_per_update=16, max_age=1),
        learner=_small.adam(1e-5),
        evaluation=_small.EVALUATION,
        num_steps=60,
    )
