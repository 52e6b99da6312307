import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.overlap import Workload, _makespan, overlap_gain


def workload(**changes):
    return Workload(**({"groups_per_update": 256, "group_size": 1, "slots": 64} | changes))


@pytest.mark.parametrize(
    ("cut", "slots", "one_step_off", "fully_asynchronous"),
    [(3, 64, 1.65, 2.55), (5, 64, 1.54, 2.85), (3, 256, None, 4.3), (5, 256, None, 6.2)],
)
def test_the_known_ratios_for_256_samples_with_lognormal_lengths(cut, slots, one_step_off, fully_asynchronous):
    """Computed elsewhere, for training as long as ideal sampling: 1 : 1.65 : 2.55 and so on."""
    gain = overlap_gain(workload(cut=cut, slots=slots), max_age=1)
    assert gain.fully_asynchronous == pytest.approx(fully_asynchronous, rel=0.03)
    if one_step_off is not None:
        assert gain.one_step_off == pytest.approx(one_step_off, rel=0.03)


def test_equal_lengths_and_full_slots_leave_nothing_to_gain_but_the_overlap():
    """Sampling 4 batches of slots takes 4, training takes 4: in turn 8, overlapped 4."""
    gain = overlap_gain(workload(sigma=0.0), max_age=1)
    assert gain.one_step_off == pytest.approx(2.0)
    assert gain.fully_asynchronous == pytest.approx(2.0)
    assert gain.this_run == pytest.approx(2.0, rel=0.02)
    assert gain.dropped_share == 0.0


def test_max_age_zero_is_sampling_and_training_in_turn():
    for group_size in (1, 8):
        gain = overlap_gain(workload(groups_per_update=256 // group_size, group_size=group_size), max_age=0)
        assert gain.this_run == pytest.approx(1.0, rel=0.02)


def test_no_training_time_leaves_only_the_tail():
    gain = overlap_gain(workload(train_ratio=0.0), max_age=1)
    assert gain.one_step_off == pytest.approx(1.0)
    assert gain.fully_asynchronous > 1.2


def test_a_loose_age_bound_reaches_the_limit_and_drops_nothing():
    gain = overlap_gain(workload(slots=256, cut=5.0), max_age=8)
    assert gain.this_run == pytest.approx(gain.fully_asynchronous, rel=0.01)
    assert gain.dropped_share == 0.0


def test_a_tight_age_bound_drops_stragglers():
    gain = overlap_gain(workload(groups_per_update=32, group_size=8, slots=256, cut=5.0), max_age=1)
    assert gain.dropped_share > 0.05
    assert gain.this_run < 0.5 * gain.fully_asynchronous


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.floats(0.01, 10), min_size=1, max_size=40),
    slots=st.integers(1, 12),
)
def test_a_list_schedule_lies_between_its_bounds(lengths, slots):
    """No schedule beats the mean load or the longest job, and list scheduling is within (2 - 1/m) of that."""
    span = _makespan(np.array(lengths), slots)
    bound = max(sum(lengths) / slots, max(lengths))
    assert bound * (1 - 1e-9) <= span <= (2 - 1 / slots) * bound * (1 + 1e-9)


@settings(max_examples=20, deadline=None)
@given(
    groups=st.integers(1, 12),
    size=st.integers(1, 6),
    slots=st.integers(1, 64),
    max_age=st.integers(0, 4),
    ratio=st.floats(0, 4),
)
def test_no_run_beats_the_bound(groups, size, slots, max_age, ratio):
    load = Workload(groups_per_update=groups, group_size=size, slots=slots, train_ratio=ratio)
    gain = overlap_gain(load, max_age=max_age)
    assert 0 < gain.this_run <= gain.fully_asynchronous * 1.1  # both are means of a few steps
    assert 0 <= gain.dropped_share < 1


def test_nothing_to_simulate_is_refused():
    with pytest.raises(ValueError, match="nothing to simulate"):
        overlap_gain(workload(slots=0), max_age=1)
