"""The run that recipes about data share: GRPO's small setting, in which each says what it samples, shows and keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from actors.config import ReplayConfig
from actors.contexts.config import GuidanceConfig
from actors.samplers.config import CurriculumConfig
from learner.config import ClippedSurrogate, RatioSurrogate, ShapedLikelihood, ShapedRatio, Term
from orchestrator.config import RunConfig
from recipes import _small
from rewards.config import RewardConfig

EXPERT_TEMPLATE = "{expression} = {answer}"
"""The expert writes the problem down again, so that the beginning of its answer is not the answer."""

TASKS = _small.TASKS.model_copy(update={"options": {**_small.TASKS.options, "expert_template": EXPERT_TEMPLATE}})

ON_POLICY = Term(loss=ClippedSurrogate(clip_low=0.2, clip_high=0.28), advantage="centered", aggregation="token")
"""The policy's own answers against the mean of their group."""

WHOLE_GROUP = Term(loss=RatioSurrogate(), advantage="centered", compared_with="group")
"""The policy's own answers against the mean of the group, donors included."""

EXPERT_IN_GROUP = Term(loss=ShapedLikelihood(shaping=0.1), source="expert", advantage="centered", compared_with="group")
"""Donors whose probabilities are unknown."""

OWN_PAST_IN_GROUP = Term(loss=ShapedRatio(shaping=0.1), source="own_past", advantage="centered", compared_with="group")
"""Donors the policy itself once sampled, with their log-probs."""


def guided_run(
    name: str,
    *,
    rules: Sequence[str | dict[str, Any]] = (),
    guidance: dict[str, Any] | None = None,
    sampler: dict[str, Any] | str = "uniform",
    stages: dict[str, Any] | None = None,
    terms: Sequence[Term] = (ON_POLICY,),
    group_size: int = 8,
    replay: ReplayConfig | None = None,
    reward: RewardConfig | None = None,
    **rollout: Any,
) -> RunConfig:
    """One value for each question; what is left out is GRPO's.

    Args:
        guidance: shares of the stream with help in their prompt.
        sampler, stages: of the curriculum.
        rollout: further settings of the workers.
    """
    settings = {"rules": tuple(rules), "group_size": group_size, **rollout}
    return RunConfig(
        name=name,
        tasks=TASKS,
        curriculum=CurriculumConfig.model_validate({"sampler": sampler, "stages": stages}),
        guidance=GuidanceConfig.model_validate(guidance or {}),
        reward=reward or _small.REWARD,
        terms=tuple(terms),
        rollout=_small.ROLLOUT.model_copy(update=settings),
        replay=replay or ReplayConfig(groups_per_update=16, max_age=1),
        learner=_small.adam(1e-5),
        evaluation=_small.EVALUATION,
        num_steps=60,
    )


def share(*contexts: dict[str, Any] | None, of: str = "1", **when: Any) -> dict[str, Any]:
    """Guidance of one entry: these contexts by stage for a share `of` the stream, under a condition on the ledger."""
    return {"contexts": [{"contexts": list(contexts), "share": of, "when": when}]}
