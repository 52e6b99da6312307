"""Exact shares over the running total, and how a batch is made of what is there."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.replay.quotas import LIVE, QuotaPlan, compose


def plan(num, **quotas):
    return QuotaPlan(num, {source: Fraction(share) for source, share in quotas.items()})


def test_a_fraction_that_does_not_divide_the_batch_alternates_and_never_drifts():
    counts = [plan(32, expert="3/10").counts(step)["expert"] for step in range(10)]
    assert counts == [9, 10, 9, 10, 10, 9, 10, 9, 10, 10]
    assert sum(counts) == 96


def test_live_groups_are_the_rest():
    assert plan(16, expert="1/2", teacher="1/4").counts(0) == {"expert": 8, "teacher": 4, LIVE: 4}
    assert plan(16).counts(3) == {LIVE: 16}
    assert plan(4, expert="1").counts(0) == {"expert": 4, LIVE: 0}
    assert plan(32, expert="3/10").live_total(10) == 320 - 96


def test_shares_beyond_the_batch_are_refused():
    with pytest.raises(ValueError, match="sum to more than the whole batch"):
        plan(4, expert="2/3", teacher="1/2")


SHARES = st.lists(st.fractions(0, 1, max_denominator=12).filter(lambda f: f > 0), min_size=1, max_size=3).filter(
    lambda shares: sum(shares) <= 1
)


@settings(deadline=None)
@given(SHARES, st.integers(1, 40), st.integers(1, 60))
def test_running_totals_are_never_off_by_a_whole_group_per_source(shares, num, steps):
    quotas = dict(zip(["expert", "teacher", "other_run"], shares, strict=False))
    made = QuotaPlan(num, quotas)
    totals = dict.fromkeys([*quotas, LIVE], 0)
    for step in range(steps):
        counts = made.counts(step)
        assert sum(counts.values()) == num
        assert min(counts.values()) >= 0
        for source, count in counts.items():
            totals[source] += count
        if len(quotas) == 1:
            assert 0 <= quotas["expert"] * num * (step + 1) - totals["expert"] < 1
        assert totals[LIVE] == made.live_total(step + 1)


def test_the_share_of_a_source_that_had_to_wait_is_made_up():
    made = plan(1, expert="1/2", teacher="1/2")
    assert [max(made.counts(step), key=made.counts(step).get) for step in range(6)] == [
        LIVE, "expert", "teacher", "expert", "teacher", "expert",
    ]  # fmt: skip


def test_a_full_batch_is_taken_as_planned():
    made = compose(plan(8, expert="1/4"), 0, {"expert": 50, LIVE: 50})
    assert (made.take, made.shortfall, made.missing) == ({"expert": 2, LIVE: 6}, {}, {})


def test_a_frozen_source_that_falls_short_is_filled_by_those_declared_after_it():
    made = compose(plan(8, expert="1/4", teacher="1/4"), 0, {"expert": 1, "teacher": 9, LIVE: 9})
    assert (made.take, made.shortfall, made.missing) == ({"expert": 1, "teacher": 3, LIVE: 4}, {"expert": 1}, {})


def test_what_no_frozen_source_has_is_filled_by_live_groups():
    made = compose(plan(8, expert="1/4", teacher="1/4"), 0, {"expert": 9, "teacher": 0, LIVE: 9})
    assert (made.take, made.shortfall, made.missing) == ({"expert": 2, "teacher": 0, LIVE: 6}, {"teacher": 2}, {})


def test_live_groups_are_waited_for_and_never_replaced():
    made = compose(plan(8, expert="1/4"), 0, {"expert": 50, LIVE: 5})
    assert (made.take[LIVE], made.missing) == (5, {LIVE: 1})
    made = compose(plan(8, expert="1/4"), 0, {"expert": 1, LIVE: 5})
    assert (made.take, made.shortfall, made.missing) == ({"expert": 1, LIVE: 5}, {"expert": 1}, {LIVE: 2})


def test_without_live_rollouts_earlier_sources_help_and_the_rest_is_missing():
    made = compose(plan(4, expert="1/2", teacher="1/2"), 0, {"expert": 3, "teacher": 0})
    assert (dict(made.take), made.shortfall, made.missing) == (
        {"expert": 3, "teacher": 0, LIVE: 0}, {"teacher": 1}, {"teacher": 1},
    )  # fmt: skip


@settings(deadline=None)
@given(SHARES, st.integers(1, 12), st.integers(0, 9), st.dictionaries(
    st.sampled_from(["expert", "teacher", "other_run", LIVE]), st.integers(0, 15)
))  # fmt: skip
def test_a_composition_takes_only_what_is_there_and_accounts_for_the_whole_batch(shares, num, step, ready):
    quotas = dict(zip(["expert", "teacher", "other_run"], shares, strict=False))
    made = compose(QuotaPlan(num, quotas), step, ready)
    assert all(0 <= count <= ready.get(source, 0) for source, count in made.take.items())
    assert sum(made.take.values()) + sum(made.missing.values()) == num
