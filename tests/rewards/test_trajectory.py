import numpy as np
import pytest

from rewards.trajectory import Group, PolicyVersion, Reward, Role, Source, Turn, VersionSpan
from rewards.verdict import Verdict
from tests.builders import make_group, make_trajectory

CONTEXT, FORCED, SAMPLED, ENVIRONMENT = Role.CONTEXT, Role.FORCED, Role.SAMPLED, Role.ENVIRONMENT


def with_roles(*roles, **fields):
    """A trajectory whose tokens have these roles."""
    length = len(roles)
    columns = {
        "token_ids": np.arange(length, dtype=np.int32),
        "roles": np.array(roles, dtype=np.int8),
        "behavior_logprobs": np.full(length, -1.0, dtype=np.float32),
        "versions": None,
    }
    return make_trajectory(**(columns | fields))


class TestArrays:
    @pytest.mark.parametrize(
        ("name", "array", "message"),
        [
            ("token_ids", np.zeros(5, np.int64), r"token_ids must be int32\[5\], got int64\[5\]"),
            ("roles", np.zeros(4, np.int8), r"roles must be int8\[5\], got int8\[4\]"),
            ("roles", np.zeros(5, np.int32), "roles must be int8"),
            ("behavior_logprobs", np.zeros(5, np.float64), "behavior_logprobs must be float32"),
            ("behavior_logprobs", np.zeros((5, 1), np.float32), r"float32\[5\], got float32\[5, 1\]"),
        ],
    )
    def test_columns_of_another_length_or_type_are_refused(self, name, array, message):
        with pytest.raises(ValueError, match=f"trajectory g0/0: .*{message}"):
            make_trajectory(**{name: array})

    def test_an_unknown_logprob_is_nan_and_allowed(self):
        expert = make_trajectory(source=Source.EXPERT)
        assert np.isnan(expert.behavior_logprobs).all()
        assert expert.versions is None

    @pytest.mark.parametrize(("start", "end"), [(-1, 2), (3, 3), (4, 3), (3, 6)])
    def test_version_spans_lie_inside(self, start, end):
        with pytest.raises(ValueError, match=r"version span .* outside \[0, 5\)"):
            make_trajectory(versions=(VersionSpan(start, end, PolicyVersion(1)),))

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"turns": (Turn(3, 6),)}, r"turn .* outside \[0, 5\)"),
            ({"turns": (Turn(4, 3),)}, "turn .* outside"),
            ({"rewards": (Reward("right", 1.0, 5),)}, r"reward 'right' lands on token 5, outside \[0, 5\)"),
            ({"rewards": (Reward("right", 1.0, -1),)}, "lands on token -1"),
        ],
    )
    def test_turns_and_rewards_lie_inside(self, fields, message):
        with pytest.raises(ValueError, match=message):
            make_trajectory(**fields)

    def test_it_is_frozen(self):
        with pytest.raises(AttributeError):
            make_trajectory().source = Source.EXPERT


class TestRoles:
    def test_the_context_is_what_comes_before_the_first_other_token(self):
        assert with_roles(CONTEXT, CONTEXT, SAMPLED, ENVIRONMENT, SAMPLED).num_context_tokens == 2
        assert with_roles(CONTEXT, FORCED, SAMPLED).num_context_tokens == 1
        assert with_roles(CONTEXT, SAMPLED, CONTEXT).num_context_tokens == 1
        assert with_roles(CONTEXT, CONTEXT).num_context_tokens == 2
        assert with_roles(SAMPLED).num_context_tokens == 0

    def test_only_sampled_tokens_are_the_policys_choice(self):
        episode = with_roles(CONTEXT, FORCED, SAMPLED, ENVIRONMENT, SAMPLED)
        assert episode.sampled_mask.tolist() == [False, False, True, False, True]
        assert episode.num_sampled_tokens == 2


class TestVersions:
    def test_the_oldest_version_of_a_sequence_that_saw_an_update(self):
        spans = (VersionSpan(3, 4, PolicyVersion(9)), VersionSpan(4, 5, PolicyVersion(7)))
        assert make_trajectory(versions=spans).oldest_version == 7

    @pytest.mark.parametrize("versions", [None, ()])
    def test_frozen_sources_have_none(self, versions):
        assert make_trajectory(source=Source.EXPERT, versions=versions).oldest_version is None

    def test_a_groups_oldest_version_is_that_of_its_oldest_member_and_frozen_members_do_not_count(self):
        live = [make_trajectory(index=i, policy_version=v) for i, v in enumerate((5, 3))]
        expert = make_trajectory(index=2, source=Source.EXPERT)
        assert make_group(trajectories=(*live, expert)).oldest_version == 3
        assert make_group(source=Source.EXPERT).oldest_version is None


class TestGroup:
    def test_it_counts_tokens_and_scores(self):
        group = make_group(scores=(1.0, None, 0.0), answers=[(4, 5), (4,), (4, 5, 6)])
        assert group.num_tokens == 9 + 6
        assert group.num_sampled_tokens == 6
        assert group.scores == [1.0, None, 0.0]
        assert group.num_scored == 2

    def test_it_has_members_and_all_of_them_are_its_own(self):
        with pytest.raises(ValueError, match="group g0 has no trajectories"):
            make_group(trajectories=())
        with pytest.raises(ValueError, match=r"group g0 holds trajectories of other groups: \['g1/0'\]"):
            make_group(trajectories=(make_trajectory(), make_trajectory(group_id="g1")))

    def test_history_and_tags_are_its_own(self):
        one, other = (
            Group(group_id="g0", prompt_id="p", source=Source.LIVE, trajectories=(make_trajectory(),)) for _ in "ab"
        )
        assert one.history == other.history == {}
        assert one.history is not other.history


def test_a_verdict_is_added_to_a_copy():
    bare = make_trajectory(verdict=None)
    judged = bare.with_verdict(Verdict.scored(0.5))
    assert bare.score is None
    assert judged.score == 0.5
    assert judged.token_ids is bare.token_ids
