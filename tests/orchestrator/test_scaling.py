"""The scaling policy: when a rollout worker joins or leaves by itself."""

import pytest

from orchestrator.config import ScalingConfig
from orchestrator.scaling import Load, LoadMeter, advise

ON = ScalingConfig(max_rollout_workers=8)


def load(**values):
    calm = {"num_workers": 4, "wait_share": 0.1, "fill": 0.5, "blocked_share": 0.0, "queue": 0.0, "num_too_old": 0}
    return Load(**(calm | values))


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ({"wait_share": 0.5}, 5),
        ({"wait_share": 0.5, "fill": 1.5}, 4),  # a batch lies ready: the learner waits for something else
        ({"wait_share": 0.5, "blocked_share": 0.9}, 4),  # the age bound holds the workers back: more would wait too
        ({"wait_share": 0.5, "num_workers": 8}, 8),
        ({"wait_share": 0.0, "blocked_share": 0.9}, 3),
        ({"wait_share": 0.0, "num_too_old": 3}, 3),
        ({"wait_share": 0.0, "blocked_share": 0.9, "num_workers": 1}, 1),
        ({"wait_share": 0.0}, 4),  # everyone is busy and nobody waits
        ({"wait_share": 0.1, "blocked_share": 0.9}, 4),  # between the thresholds nothing swings
        ({"num_workers": 11}, 8),
    ],
)
def test_advice(seen, expected):
    advice = advise(load(**seen), ON)
    assert advice.num_workers == expected
    assert advice.reason


def test_off_by_default():
    assert advise(load(wait_share=1.0), ScalingConfig()).num_workers == 4


def test_a_meter_gives_the_growth_since_the_previous_period():
    meter = LoadMeter(num_loops_per_worker=4, groups_per_batch=8)
    replay = {"dropped/live/too_old/<=64 tokens": 5, "groups/ready/live": 4, "waiting_for_ticket": 4}
    engines = {"rollout-0": {"waiting": 6.0}, "rollout-1": {"waiting": 0.0}}
    common = {"num_workers": 2, "engines": engines}
    assert meter.measure(wall_s=100, lease_wait_s=50, replay=replay, **common) is None
    later = replay | {"dropped/live/too_old/<=64 tokens": 6}
    seen = meter.measure(wall_s=160, lease_wait_s=65, replay=later, **common)
    assert seen == Load(num_workers=2, wait_share=0.25, fill=0.5, blocked_share=0.5, queue=3.0, num_too_old=1)


def test_bounds_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="raise the first or lower the second"):
        ScalingConfig(max_rollout_workers=1, min_rollout_workers=2)
