"""Completions and expert answers become records: the one place where a Group is put together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from actors.engines.protocol import Completion
from actors.ports import LeasedTask, Ticket
from rewards.task import ExpertResponse, Task
from rewards.trajectory import (
    FinishReason,
    Group,
    Role,
    SamplingRecord,
    Source,
    Trajectory,
    Turn,
    VersionSpan,
)
from rewards.verdict import Verdict


def group_from_completions(
    leased: LeasedTask,
    ticket: Ticket,
    prompt_ids: Sequence[int],
    completions: Sequence[Completion],
    sampling: SamplingRecord,
    *,
    group_id: str,
    forced_ids: Sequence[int] = (),
    train_prompt_ids: Sequence[int] | None = None,
) -> Group:
    """Single-turn answers of the live policy, exactly as the engine sampled them.

    Log-probs and version spans are copied as reported; whether they make sense is checked by the replay cache, so
    that a faulty engine is counted there and nothing is lost silently.

    Args:
        forced_ids: the beginning of every answer that the policy was made to continue.
        train_prompt_ids: prompt the learner conditions on; None when it is `prompt_ids`.
    """
    members = tuple(
        _live_trajectory(leased, group_id, index, prompt_ids, forced_ids, completion, sampling)
        for index, completion in enumerate(completions)
    )
    if train_prompt_ids is not None:
        members = tuple(replace(t, train_prompt_ids=np.asarray(train_prompt_ids, np.int32)) for t in members)
    return Group(
        group_id=group_id,
        prompt_id=leased.task.task_id,
        source=Source.LIVE,
        trajectories=members,
        ticket_id=ticket.ticket_id,
        num_asked=ticket.group_size,
        context=leased.context,
        tags=leased.task.tags,
        created_at=time.time(),
    )


def _live_trajectory(
    leased: LeasedTask,
    group_id: str,
    index: int,
    prompt_ids: Sequence[int],
    forced_ids: Sequence[int],
    completion: Completion,
    sampling: SamplingRecord,
) -> Trajectory:
    start, length = len(prompt_ids) + len(forced_ids), len(completion.token_ids)
    roles = np.full(start + length, Role.SAMPLED, dtype=np.int8)
    roles[:start] = Role.FORCED
    roles[: len(prompt_ids)] = Role.CONTEXT
    logprobs = np.full(start + length, np.nan, dtype=np.float32)
    reported = min(length, len(completion.logprobs))
    logprobs[start : start + reported] = completion.logprobs[:reported]
    truncated = completion.finish_reason is FinishReason.LENGTH
    return Trajectory(
        trajectory_id=f"{group_id}/{index}",
        group_id=group_id,
        source=Source.LIVE,
        token_ids=np.concatenate([np.asarray(ids, np.int32) for ids in (prompt_ids, forced_ids, completion.token_ids)]),
        roles=roles,
        behavior_logprobs=logprobs,
        versions=tuple(VersionSpan(start + s.start, start + s.end, s.version) for s in completion.versions),
        sample_context=leased.context,
        turns=(Turn(start, start + length, completion.finish_reason),) if length else (),
        finish_reason=completion.finish_reason,
        terminated=not truncated,
        truncated=truncated,
        sampling=sampling,
    )


def expert_group(task: Task, prompt_ids: Sequence[int], answers: Sequence[Sequence[int]], seed_tag: str = "") -> Group:
    """The expert responses of one task as a frozen group.

    Args:
        prompt_ids: the rendered prompt, the same tokens the live policy sees.
        answers: token ids of each response, end-of-turn included, in the order of `task.expert`.

    Raises:
        ValueError: recorded log-probs that do not cover the answer's tokens (they stay unknown when absent).
    """
    group_id = f"expert:{task.task_id}{seed_tag}"
    members = tuple(
        _expert_trajectory(task, response, group_id, index, prompt_ids, answer_ids)
        for index, (response, answer_ids) in enumerate(zip(task.expert, answers, strict=True))
    )
    return Group(
        group_id=group_id,
        prompt_id=task.task_id,
        source=Source.EXPERT,
        trajectories=members,
        num_asked=len(members),
        tags=task.tags,
    )


def _expert_trajectory(
    task: Task, response: ExpertResponse, group_id: str, index: int, prompt_ids: Sequence[int], answer: Sequence[int]
) -> Trajectory:
    start, length = len(prompt_ids), len(answer)
    logprobs = np.full(start + length, np.nan, dtype=np.float32)
    if response.logprobs is not None:
        if len(response.logprobs) != length:
            raise ValueError(
                f"task {task.task_id}: expert response {index} has {len(response.logprobs)} log-probs for {length} "
                "tokens; leave them out to train without behaviour log-probs"
            )
        logprobs[start:] = response.logprobs
    roles = np.full(start + length, Role.SAMPLED, dtype=np.int8)
    roles[:start] = Role.CONTEXT
    return Trajectory(
        trajectory_id=f"{group_id}/{index}",
        group_id=group_id,
        source=Source.EXPERT,
        token_ids=np.concatenate([np.asarray(prompt_ids, np.int32), np.asarray(answer, np.int32)]),
        roles=roles,
        behavior_logprobs=logprobs,
        turns=(Turn(start, start + length),),
        verdict=Verdict.scored(response.score),
    )
