from dataclasses import replace

import numpy as np
import pytest
import torch

from learner.batch import collate, training_sequences
from rewards.trajectory import Role, Turn
from tests.builders import make_group, make_trajectory
from tests.learner.tiny_policy import micro_batch, random_groups, sampled_masks


def test_siblings_share_prompt_nodes_and_equal_answers_are_predicted_once():
    group = make_group(prompt=[1, 2, 3], answers=[(4, 5), (4, 5), (4, 6)], scores=(1.0, 0.0, 0.0))
    batch = micro_batch([group])
    assert batch.token_ids.tolist() == [1, 2, 3, 4]  # the last answer token predicts nothing
    assert batch.position_ids.tolist() == [0, 1, 2, 3]
    assert batch.predictors.tolist() == [2, 3]
    assert [(r, t) for r, t in zip(batch.rows.tolist(), batch.targets.tolist(), strict=True)] == [
        (0, 4),
        (1, 5),
        (1, 6),
    ]
    assert batch.readers.tolist() == [0, 1, 0, 1, 0, 2]
    assert (batch.num_tokens, batch.num_logical_tokens) == (4, 15)


def test_columns_follow_the_trained_tokens():
    group = make_group(prompt=[1, 2], answers=[(3, 4), (5, 6, 7)], scores=(1.0, 0.0))
    marks = [np.arange(len(t.token_ids), dtype=np.float32) + 10 * i for i, t in enumerate(group.trajectories)]
    batch = collate(
        training_sequences([group], sampled_masks([group])),
        {"mark": marks},
        share_prefixes=True,
        backend="blocks",
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    assert batch.columns["mark"].tolist() == [2.0, 3.0, 12.0, 13.0, 14.0]
    assert batch.targets[batch.readers].tolist() == [3, 4, 5, 6, 7]


def test_two_turn_tool_episode_trains_only_the_policys_own_tokens():
    ids = np.array([1, 2, 11, 12, 21, 22, 23, 13, 14], np.int32)
    sampled, tool = Role.SAMPLED, Role.ENVIRONMENT
    roles = np.array([0, 0, sampled, sampled, tool, tool, tool, sampled, sampled], np.int8)
    trajectory = make_trajectory(
        token_ids=ids,
        roles=roles,
        behavior_logprobs=np.full(9, -1.0, np.float32),
        versions=None,
        turns=(Turn(2, 4), Turn(7, 9)),
    )
    group = replace(make_group(), trajectories=(trajectory,))
    batch = micro_batch([group])
    assert batch.targets[batch.readers].tolist() == [11, 12, 13, 14]
    assert batch.predictors[batch.rows[batch.readers]].tolist() == [1, 2, 6, 7]
    assert batch.token_ids.tolist() == ids[:-1].tolist()  # the tool's answer is read, though not learnt


def test_train_prompt_replaces_the_sampled_one():
    plain = make_trajectory(prompt=[1, 2, 3, 4, 5], answer=[8, 9])
    group = replace(make_group(), trajectories=(replace(plain, train_prompt_ids=np.array([6, 7], np.int32)),))
    (sequence,) = training_sequences([group], sampled_masks([group]))
    assert sequence.token_ids.tolist() == [6, 7, 8, 9]
    assert sequence.record_positions.tolist() == [5, 6]
    assert sequence.positions.tolist() == [2, 3]


def test_untrained_trajectories_and_tails_are_left_out():
    group = make_group(prompt=[1, 2], answers=[(3, 4, 5), (6, 7, 8)], scores=(1.0, 0.0))
    masks = sampled_masks([group])
    masks[0][:] = False
    masks[1][3:] = False
    (sequence,) = training_sequences([group], masks)
    assert sequence.trajectory == 1
    assert sequence.token_ids.tolist() == [1, 2, 6]


def test_a_trained_first_token_is_refused():
    group = replace(make_group(), trajectories=(make_trajectory(prompt=[], answer=[4, 5]),))
    with pytest.raises(ValueError, match="nothing predicts it"):
        training_sequences([group], sampled_masks([group]))


def test_a_trained_token_inside_a_replaced_prompt_is_refused():
    trajectory = replace(make_trajectory(), train_prompt_ids=np.array([6], np.int32))
    with pytest.raises(ValueError, match="train_prompt_ids replaces"):
        training_sequences([replace(make_group(), trajectories=(trajectory,))], [np.ones(5, np.bool_)])


def test_read_only_records_are_copied():
    groups = random_groups([(3, (2, 3))])
    for trajectory in groups[0].trajectories:
        trajectory.token_ids.setflags(write=False)
    batch = micro_batch(groups)
    before = groups[0].trajectories[0].token_ids.copy()
    batch.token_ids.zero_()
    assert np.array_equal(groups[0].trajectories[0].token_ids, before)


def test_a_rank_without_work_gets_one_token_and_nothing_to_train():
    batch = micro_batch([], sequences=[])
    assert (batch.num_tokens, batch.num_logical_tokens) == (1, 0)
    assert len(batch.predictors) == len(batch.targets) == len(batch.readers) == 0
