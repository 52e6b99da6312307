"""The admission inequality and the step a new group is due at."""

from hypothesis import given, settings
from hypothesis import strategies as st

from actors.replay.limiter import Supply, admit


def supply(*, consumed=0, stored=0, num_groups=None, running=None, uses_per_group=1):
    num_groups = stored if num_groups is None else num_groups
    return Supply(consumed, stored, num_groups, running or {}, uses_per_group)


def test_a_new_group_is_due_at_the_first_step_that_is_not_supplied():
    assert admit(supply(), [2, 2], 0).due == 0
    assert admit(supply(stored=1), [2, 2], 0).due == 0
    assert admit(supply(stored=1, running={0: 1}), [2, 2], 0).due == 1
    assert admit(supply(stored=3, running={1: 1}), [2, 2], 0).due is None


def test_a_replacement_is_due_at_the_step_whose_group_was_lost():
    assert admit(supply(stored=0, running={5: 1, 6: 2}), [2, 2], 5).due == 5


def test_groups_running_for_later_steps_do_not_supply_an_earlier_one():
    assert admit(supply(running={1: 2}), [2, 2], 0).due == 0


def test_the_bound_is_that_of_the_inequality():
    """accepted + running <= (max_age + steps committed + 1) x fresh, restated from its source."""
    for max_age in range(3):
        for steps in range(4):
            consumed, fresh, running = 3 * steps, 3, 0
            while (
                admit(supply(consumed=consumed, running={steps: running}), [fresh] * (max_age + 1), steps).due
                is not None
            ):
                running += 1
            assert consumed + running == (max_age + steps + 1) * fresh


def test_groups_that_may_be_used_twice_count_twice():
    assert admit(supply(stored=4, num_groups=2, uses_per_group=2), [2, 2], 0).due is None
    assert admit(supply(stored=2, num_groups=1, running={0: 1}, uses_per_group=2), [2, 2], 0).due is None
    assert admit(supply(stored=2, num_groups=1, uses_per_group=2), [2, 2], 0).due == 1


def test_a_batch_needs_different_groups_however_many_uses_one_has_left():
    assert admit(supply(stored=9, num_groups=1, uses_per_group=9), [2, 2], 7).due == 7
    assert admit(supply(stored=9, num_groups=1, running={7: 1}, uses_per_group=9), [2, 2], 7).due is None


def test_a_refusal_says_by_how_much():
    assert admit(supply(consumed=6, stored=2, running={3: 4}), [2, 2, 2], 3).reason == (
        "8 live groups accepted + 4 running reach the bound of 12 = (max_age 2 + 3 steps committed + 1) x fresh groups "
        "per update; waiting for step 3 to be committed or a group to be dropped"
    )
    assert "no group is needed" in admit(supply(), [0, 0], 3).reason


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(0, 8), st.integers(0, 50))
def test_filling_up_supplies_every_step_and_then_stops(demand, stored, steps):
    running = {}
    while (due := admit(supply(stored=stored, running=running), demand, steps).due) is not None:
        assert steps <= due < steps + len(demand)
        running[due] = running.get(due, 0) + 1
        assert sum(running.values()) <= sum(demand)
    assert stored + sum(running.values()) == max(stored, sum(demand))
    for index in range(len(demand)):
        by_then = sum(num for due, num in running.items() if due <= steps + index)
        assert stored + by_then >= sum(demand[: index + 1])
