"""Builders that fill every field a test is not about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rewards.trajectory import (
    Group,
    PolicyVersion,
    Role,
    Source,
    Trajectory,
    VersionSpan,
)
from rewards.verdict import Status, Verdict


def make_trajectory(
    *,
    group_id: str = "g0",
    index: int = 0,
    prompt: Sequence[int] = (1, 2, 3),
    answer: Sequence[int] = (4, 5),
    source: Source = Source.LIVE,
    policy_version: int = 0,
    score: float | None = 1.0,
    logprobs: Sequence[float] | None = None,
    **fields: Any,
) -> Trajectory:
    """A one-turn trajectory; live ones carry -1.0 nats per token unless `logprobs` says otherwise."""
    num_prompt, num_answer = len(prompt), len(answer)
    behavior = np.full(num_prompt + num_answer, np.nan, dtype=np.float32)
    if logprobs is not None:
        behavior[num_prompt:] = logprobs
    elif source is Source.LIVE:
        behavior[num_prompt:] = -1.0
    roles = np.array([Role.CONTEXT] * num_prompt + [Role.SAMPLED] * num_answer, dtype=np.int8)
    versions = None
    if source is Source.LIVE:
        versions = (VersionSpan(num_prompt, num_prompt + num_answer, PolicyVersion(policy_version)),)
    if score is None:
        verdict = Verdict.unscored(Status.INFRA_ERROR)
    else:
        verdict = Verdict.scored(score)
    values: dict[str, Any] = {
        "trajectory_id": f"{group_id}/{index}",
        "group_id": group_id,
        "source": source,
        "token_ids": np.array([*prompt, *answer], dtype=np.int32),
        "roles": roles,
        "behavior_logprobs": behavior,
        "versions": versions,
        "verdict": verdict,
    }
    return Trajectory(**(values | fields))


def make_group(
    *,
    group_id: str = "g0",
    prompt_id: str | None = None,
    source: Source = Source.LIVE,
    policy_version: int = 0,
    scores: Sequence[float | None] = (1.0, 0.0),
    ticket_id: str | None = None,
    prompt: Sequence[int] = (1, 2, 3),
    answers: Sequence[Sequence[int]] | None = None,
    **fields: Any,
) -> Group:
    """A scored group, one member per score."""
    answers = answers or [(4, 5)] * len(scores)
    members = tuple(
        make_trajectory(
            group_id=group_id,
            index=i,
            prompt=prompt,
            answer=answer,
            source=source,
            policy_version=policy_version,
            score=score,
        )
        for i, (score, answer) in enumerate(zip(scores, answers, strict=True))
    )
    values: dict[str, Any] = {
        "group_id": group_id,
        "prompt_id": prompt_id or f"prompt-{group_id}",
        "source": source,
        "trajectories": members,
        "ticket_id": ticket_id,
        "num_asked": len(members),
    }
    return Group(**(values | fields))
