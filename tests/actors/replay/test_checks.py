"""What an honest engine and reward pool produce passes; anything else has a name."""

from dataclasses import replace

import numpy as np
import pytest

from actors.replay.checks import LOGPROB_SLACK, fault_of
from rewards.trajectory import PolicyVersion, Role, Source, VersionSpan
from tests.actors.replay.drivers import replace_member
from tests.builders import make_group

VERSIONS = {0: 0, 1: 1}


def spans(*parts):
    return tuple(VersionSpan(start, end, PolicyVersion(version)) for start, end, version in parts)


def test_a_good_group_has_no_fault():
    assert fault_of(make_group(), VERSIONS) is None


def test_two_turns_with_a_tool_result_between_them_have_no_fault():
    """Only sampled tokens need a log-prob and a version."""
    group = make_group(answers=[(4, 5, 6, 7), (4, 5)])
    roles = np.array([Role.CONTEXT] * 3 + [Role.SAMPLED, Role.ENVIRONMENT, Role.FORCED, Role.SAMPLED], np.int8)
    logprobs = np.array([np.nan] * 3 + [-1, np.nan, np.nan, -2], np.float32)
    two_turns = replace_member(group, roles=roles, behavior_logprobs=logprobs, versions=spans((3, 4, 0), (6, 7, 1)))
    assert fault_of(two_turns, VERSIONS) is None
    assert fault_of(replace_member(two_turns, versions=spans((3, 4, 0))), VERSIONS) == "version_gap"


def test_a_probability_of_one_may_round_above_zero_nats():
    group = make_group()
    almost = np.array([np.nan] * 3 + [LOGPROB_SLACK / 2, -1], np.float32)
    assert fault_of(replace_member(group, behavior_logprobs=almost), VERSIONS) is None
    assert fault_of(replace_member(group, behavior_logprobs=almost * 4), VERSIONS) == "positive_logprobs"


@pytest.mark.parametrize(
    ("versions", "fault"),
    [
        (spans((3, 5, 0)), None),
        (spans((3, 4, 0), (4, 5, 1)), None),
        (spans((3, 5, 0), (4, 5, 1)), "version_gap"),
        (spans((4, 5, 1)), "version_gap"),
        ((), "no_versions"),
        (spans((3, 4, 0), (4, 5, 2)), "unknown_version"),
    ],
)
def test_every_sampled_token_has_exactly_one_announced_version(versions, fault):
    assert fault_of(replace_member(make_group(), versions=versions), VERSIONS) == fault


def test_an_empty_answer_among_others_is_no_fault_but_a_group_of_them_is():
    def emptied(member):
        return replace(
            member,
            token_ids=member.token_ids[:3],
            roles=member.roles[:3],
            behavior_logprobs=member.behavior_logprobs[:3],
            versions=(),
        )

    group = make_group()
    first, second = group.trajectories
    assert fault_of(replace(group, trajectories=(emptied(first), second)), VERSIONS) is None
    assert fault_of(replace(group, trajectories=(emptied(first), emptied(second))), VERSIONS) == "nothing_sampled"


def test_members_are_live_and_different():
    group = make_group()
    first = group.trajectories[0]
    assert fault_of(replace(group, trajectories=(first, first)), VERSIONS) == "duplicate_members"
    assert fault_of(replace_member(group, source=Source.EXPERT), VERSIONS) == "not_live"
    assert fault_of(replace(group, source=Source.OWN_PAST), VERSIONS) == "not_live"


@pytest.mark.parametrize(
    ("scores", "fault"),
    [((1.0,), None), ((None,), "unscored"), ((1.0, None), "unscored"), ((1.0, None, 0.0), None)],
)
def test_a_comparison_needs_two_scores(scores, fault):
    assert fault_of(make_group(scores=scores), VERSIONS) == fault
