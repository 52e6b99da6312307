"""Controllers: worked numbers, bounds, what a checkpoint keeps, and that the real learner obeys them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.config import ClippedSurrogate, KLToReference, Term
from learner.objective import Objective
from learner.schedules.config import PID, AdaptiveKL, DualAscent, EntropyAdaptive
from learner.schedules.controllers import advance, first_state
from tests.learner.rank_process import CONFIG, batch, make_trainer, poisoned_batch

LABEL = "live/kl_to_reference"


def value_after(controller, *measured, num_sequences=1.0):
    state = first_state(controller)
    for number in measured:
        state = advance(controller, state, number, num_sequences)
    return state.value


def test_worked_numbers():
    assert value_after(AdaptiveKL(start=0.2, target=6.0), 12.0, num_sequences=256) == pytest.approx(0.201024)
    assert value_after(DualAscent(start=0.04, measure="loss", target=0.05, rate=0.5), 0.07608) == pytest.approx(0.05304)
    pid = PID(start=0.3, measure="kl_mean", target=1.0, proportional=0.3, integral=0.01, derivative=0.05)
    assert value_after(pid, 1.5) == pytest.approx(0.3 + 0.15 + 0.005)
    assert value_after(pid, 1.5, 1.2) == pytest.approx(0.3 + 0.06 + 0.007 - 0.015)
    assert value_after(EntropyAdaptive(start=0.5), 2.0) == pytest.approx(0.5 * math.exp(-2.0))


CONTROLLERS = (
    AdaptiveKL(start=0.5, target=0.1, horizon=4, low=0.1, high=2.0),
    PID(start=0.5, measure="loss", target=0.1, proportional=1.0, integral=0.3, derivative=0.2, low=0.1, high=2.0),
    DualAscent(start=0.5, measure="loss", target=0.1, rate=1.0, low=0.1, high=2.0),
    EntropyAdaptive(start=0.5, rate=-0.7, low=0.1, high=2.0),
)
numbers = st.floats(-1e3, 1e3) | st.sampled_from([math.nan, math.inf])


@settings(max_examples=40, deadline=None)
@given(controller=st.sampled_from(CONTROLLERS), measured=st.lists(numbers, max_size=12))
def test_coefficients_stay_inside_their_bounds_and_ignore_what_is_no_number(controller, measured):
    value = value_after(controller, *measured)
    assert 0.1 <= value <= 2.0
    assert value == value_after(controller, *(m for m in measured if math.isfinite(m)))


def test_an_error_that_cannot_take_effect_does_not_pile_up():
    pid = PID(start=0.5, measure="loss", target=0.0, integral=0.1, high=1.0)
    assert value_after(pid, *[2.0] * 50) == 1.0
    assert value_after(pid, *[2.0] * 50, *[-1.0] * 3) < 1.0


def controlled(controller):
    first = Term(loss=ClippedSurrogate(), advantage="centered")
    return (first, Term(loss=KLToReference(), weight=0.5, controller=controller))


def test_the_learner_obeys_and_a_skipped_step_moves_nothing(tiny_folder, tmp_path):
    terms = controlled(DualAscent(start=0.4, measure="kl_mean", target=-1.0, rate=0.1))
    trainer, other = make_trainer(tiny_folder, CONFIG, terms), make_trainer(tiny_folder, CONFIG, terms)
    first = trainer.step(batch(0), 0).terms[LABEL]
    assert first["weight"] == pytest.approx(0.2)
    expected = 0.5 * (0.4 + 0.1 * (first["kl_mean"] + 1.0))
    assert trainer.objective.weights(1)[1] == pytest.approx(expected)
    assert trainer.step(poisoned_batch(), 1).skipped
    assert trainer.objective.weights(1)[1] == pytest.approx(expected)
    trainer.begin_save(tmp_path / "state").result()
    other.load(tmp_path / "state")
    assert other.objective.controls.coefficients == trainer.objective.controls.coefficients
    assert other.step(batch(2), 2).terms[LABEL]["weight"] == pytest.approx(expected)


def test_what_cannot_be_measured_is_refused(tiny_folder):
    with pytest.raises(ValueError, match="but the terms are live/clipped_surrogate, live/kl_to_reference"):
        Objective(controlled(DualAscent(measure="loss", of="live/entropy_bonus", target=0.0, rate=1.0)))
    trainer = make_trainer(tiny_folder, CONFIG, controlled(DualAscent(measure="entropy_mean", target=0.0, rate=1.0)))
    with pytest.raises(ValueError, match=r"does not report; it has .*kl_mean"):
        trainer.step(batch(0), 0)
    with pytest.raises(ValueError, match="outside"):
        DualAscent(measure="loss", target=0.0, rate=1.0, start=3.0, high=2.0)
