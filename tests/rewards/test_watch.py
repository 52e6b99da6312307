import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.config import RewardComponent, RewardConfig, WatchConfig
from rewards.verdict import Status, Verdict
from rewards.watch import RewardWatch, repeated_share

WINDOW = 40


def make_watch(held_out="truth", **limits):
    return RewardWatch(WatchConfig(window=WINDOW, held_out=held_out, **limits))


def feed(watch, count=WINDOW, *, paid=0.5, true=None, tokens=20, text=None, seed=0):
    """Samples of different tasks; a share of them paid, and as many right unless told otherwise."""
    rng = random.Random(seed)
    for i in range(count):
        score = float(i % 10 < paid * 10)
        truth = score if true is None else float(i % 10 < true * 10)
        answer = text or " ".join(str(rng.random()) for _ in range(8))
        verdict = Verdict.scored(score, components={"right": score, "truth": truth})
        watch.add(f"task {i % 20}", answer, tokens + rng.randint(-3, 3), verdict)


def test_nothing_rings_while_nothing_changes():
    watch = make_watch()
    assert watch.stats() == {}
    for seed in range(5):
        feed(watch, seed=seed)
        assert watch.alarms() == {}
    numbers = watch.stats()
    assert numbers["watch/reward_mean"] == numbers["watch/component/right_mean"] == 0.5
    assert numbers["watch/agreement"] == 1.0
    assert abs(numbers["watch/length_drift"]) < 0.5
    assert numbers["watch/alarms"] == 0


def test_an_honest_improvement_rings_nothing():
    watch = make_watch()
    feed(watch, paid=0.3)
    feed(watch, paid=0.9)
    assert watch.stats()["watch/reward_drift"] > 1
    assert watch.alarms() == {}


def test_a_reward_that_rises_alone_rings():
    watch = make_watch()
    feed(watch, paid=0.3)
    feed(watch, paid=0.9, true=0.3)
    assert watch.alarms().keys() == {"gap", "agreement"}
    assert "fell from 100% to 40%" in watch.alarms()["agreement"]
    assert watch.stats()["watch/alarms"] == 2


@pytest.mark.parametrize(
    ("change", "alarm"),
    [
        ({"tokens": 60}, "length"),
        ({"text": "well now then " * 12}, "repetition"),
        ({"text": "it is forty two"}, "same_answer"),
    ],
)
def test_each_sign_rings(change, alarm):
    watch = make_watch()
    feed(watch)
    feed(watch, **change)
    assert alarm in watch.alarms()
    feed(watch, seed=3)  # and is silent again when it is over
    assert watch.alarms() == {}


def test_shorter_answers_and_fewer_repeats_do_not_ring():
    watch = make_watch()
    feed(watch, tokens=60)
    feed(watch, tokens=20)
    assert watch.alarms() == {}


def test_without_a_held_out_component_agreement_is_not_told():
    watch = make_watch(held_out=None)
    feed(watch, paid=0.1)
    feed(watch, paid=0.9, true=0.1)
    assert "watch/agreement" not in watch.stats()
    assert watch.alarms() == {}


def test_samples_without_a_score_say_nothing():
    watch = make_watch()
    watch.add("t", "x", 1, Verdict.unscored(Status.INFRA_ERROR))
    assert watch.stats() == {}


def test_short_paid_answers():
    watch = make_watch()
    feed(watch, 10, text="42")
    assert watch.stats()["watch/paid_short_share"] == 1.0


def test_repeated_share():
    assert repeated_share("a b") == 0.0
    assert repeated_share("1 2 3 1 2 3") == 0.25
    assert repeated_share("A a A a a") == pytest.approx(2 / 3)


@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 500), st.text(max_size=30)), max_size=120))
def test_numbers_are_finite_whatever_comes(samples):
    watch = make_watch()
    for index, (score, tokens, text) in enumerate(samples):
        watch.add(str(index % 3), text, tokens, Verdict.scored(score, components={"a": score, "truth": None}))
        assert all(abs(value) < 1e9 for value in watch.stats().values())


def test_the_held_out_component_must_be_a_measure():
    paid = {"right": RewardComponent(verifier="math")}
    with pytest.raises(ValueError, match="held_out='right' must name a component of weight 0"):
        RewardConfig(components=paid, watch=WatchConfig(held_out="right"))
