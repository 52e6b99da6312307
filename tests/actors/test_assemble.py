import numpy as np
import pytest

from actors.assemble import expert_group, group_from_completions
from actors.engines.protocol import Completion
from actors.ports import LeasedTask, Ticket
from rewards.task import ExpertResponse, Task
from rewards.trajectory import FinishReason, PolicyVersion, Role, SamplingRecord, Source, VersionSpan


def completion(tokens, versions, finish=FinishReason.STOP):
    return Completion(
        token_ids=np.array(tokens, np.int32),
        logprobs=np.full(len(tokens), -0.5, np.float32),
        versions=tuple(VersionSpan(s, e, PolicyVersion(v)) for s, e, v in versions),
        finish_reason=finish,
    )


def test_spans_of_the_engine_move_behind_the_prompt_and_the_oldest_one_counts():
    task = Task(task_id="t", prompt="p", tags={"coverage": "covered"})
    leased = LeasedTask(lease_id="l", task=task)
    ticket = Ticket(ticket_id="k", worker_id="w", group_size=2)
    completions = [
        completion([7, 8, 9], [(0, 2, 4), (2, 3, 5)]),
        completion([7], [(0, 1, 5)], FinishReason.LENGTH),
    ]
    group = group_from_completions(leased, ticket, [1, 2], completions, SamplingRecord(), group_id="g")
    first, second = group.trajectories
    assert first.token_ids.tolist() == [1, 2, 7, 8, 9]
    assert first.roles.tolist() == [Role.CONTEXT] * 2 + [Role.SAMPLED] * 3
    assert np.isnan(first.behavior_logprobs[:2]).all()
    assert first.versions == (VersionSpan(2, 4, PolicyVersion(4)), VersionSpan(4, 5, PolicyVersion(5)))
    assert group.oldest_version == 4
    assert (first.terminated, second.terminated, second.truncated) == (True, False, True)
    assert group.tags == {"coverage": "covered"}


def test_log_probs_the_engine_did_not_report_stay_unknown():
    short = Completion(
        token_ids=np.array([7, 8], np.int32),
        logprobs=np.array([-0.1], np.float32),
        versions=(VersionSpan(0, 2, PolicyVersion(0)),),
        finish_reason=FinishReason.STOP,
    )
    leased = LeasedTask(lease_id="l", task=Task(task_id="t", prompt="p"))
    ticket = Ticket(ticket_id="k", worker_id="w", group_size=1)
    group = group_from_completions(leased, ticket, [1], [short], SamplingRecord(), group_id="g")
    assert np.isnan(group.trajectories[0].behavior_logprobs[2])


def test_expert_answers_are_frozen_and_their_log_probs_unknown():
    task = Task(task_id="t", prompt="p", expert=(ExpertResponse(text="46"),))
    group = expert_group(task, [1, 2, 3], [[10, 11]])
    member = group.trajectories[0]
    assert group.source is Source.EXPERT
    assert group.oldest_version is None
    assert member.versions is None
    assert np.isnan(member.behavior_logprobs).all()
    assert member.num_sampled_tokens == 2


def test_recorded_answers_keep_their_score():
    pair = (ExpertResponse(text="46"), ExpertResponse(text="47", score=0.0))
    group = expert_group(Task(task_id="t", prompt="p", expert=pair), [1], [[10], [11]])
    assert group.scores == [1.0, 0.0]


def test_expert_log_probs_must_cover_the_answer():
    task = Task(task_id="t", prompt="p", expert=(ExpertResponse(text="46", logprobs=(-0.1,)),))
    with pytest.raises(ValueError, match="1 log-probs for 2 tokens"):
        expert_group(task, [1], [[10, 11]])
