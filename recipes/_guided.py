"""The run that recipes about data share: GRPO's small setting, in which each says what it samples, shows and keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from actors.config import ReplayConfig
from actors.contexts.config import GuidanceConfig
from actors.samplers.config import CurriculumConfig
from learner.config import ClippedSurrogate, LearnerConfig, RatioSurrogate, ShapedLikelihood, ShapedRatio, Term
from orchestrator.config import RunConfig
from recipes import _small
from recipes._live import live_run
from rewards.config import RewardConfig, TaskConfig

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
    donors_from: float = 0.0,
    terms: Sequence[Term] = (ON_POLICY,),
    replay: ReplayConfig | None = None,
    tasks: TaskConfig = TASKS,
    reward: RewardConfig = _small.REWARD,
    learner: LearnerConfig | None = None,
    **rollout: Any,
) -> RunConfig:
    """One value for each question; what is left out is GRPO's.

    Args:
        guidance: shares of the stream with help in their prompt.
        sampler, stages, donors_from: of the curriculum.
        rollout: further settings of the workers.
    """
    changes: dict[str, Any] = {"replay": replay, "learner": learner}
    changes = {name: section for name, section in changes.items() if section is not None}
    return live_run(
        name,
        terms,
        tasks=tasks,
        reward=reward,
        curriculum=CurriculumConfig.model_validate({"sampler": sampler, "stages": stages, "donors_from": donors_from}),
        guidance=GuidanceConfig.model_validate(guidance or {}),
        rollout=_small.ROLLOUT.model_copy(update={"rules": tuple(rules), **rollout}),
        **changes,
    )


def own_past_run(name: str, **splice: Any) -> RunConfig:
    """Right answers of the run's own past join later groups of their prompt.

    Args:
        splice: options of the rule `splice_donors`: when, whose places, which donors.
    """
    return guided_run(
        name,
        rules=[{"rule": "splice_donors", "source": "own_past", **splice}, "stash_right", "drop_constant"],
        terms=(WHOLE_GROUP, OWN_PAST_IN_GROUP),
    )


def share(*contexts: dict[str, Any] | None, of: str = "1", **when: Any) -> dict[str, Any]:
    """Guidance of one entry: these contexts by stage for a share `of` the stream, under a condition on the ledger."""
    return {"contexts": [{"contexts": list(contexts), "share": of, "when": when}]}
