import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.verdict import FLOOR_STATUSES, UNSCORED_STATUSES, Status, Verdict


def test_every_status_is_scored_or_floor_or_unscored_and_only_one_of_them():
    assert FLOOR_STATUSES | UNSCORED_STATUSES | {Status.SCORED} == set(Status)
    assert not FLOOR_STATUSES & UNSCORED_STATUSES
    assert Status.SCORED not in FLOOR_STATUSES | UNSCORED_STATUSES


def test_faults_of_the_model_earn_the_floor_and_faults_of_others_no_number():
    model = {Status.NO_ANSWER, Status.REJECTED, Status.TIMEOUT, Status.RESOURCE, Status.CRASH}
    others = {Status.INVALID_GOLD, Status.JUDGE_ERROR, Status.INFRA_ERROR, Status.CANCELLED}
    assert model == FLOOR_STATUSES
    assert others == UNSCORED_STATUSES


@given(st.sampled_from(list(Status)), st.none() | st.floats())
def test_a_verdict_has_a_finite_number_exactly_when_its_status_has_one(status, score):
    fits = (score is None) == (status in UNSCORED_STATUSES) and (score is None or math.isfinite(score))
    if fits:
        assert Verdict(score=score, status=status).score == score
    else:
        with pytest.raises(ValueError, match=r"does not go with score|must be finite"):
            Verdict(score=score, status=status)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_the_infrastructures_fault(score):
    verdict = Verdict.scored(score)
    assert (verdict.status, verdict.score) == (Status.INFRA_ERROR, None)
    assert repr(score) in verdict.extras["error"]


def test_scored_takes_what_python_counts_as_a_number():
    assert Verdict.scored(True).score == 1.0
    assert Verdict.scored(0.25, components={"a": 0.25, "b": None}).components == {"a": 0.25, "b": None}


@pytest.mark.parametrize("status", sorted(FLOOR_STATUSES))
def test_the_floor_is_0_unless_configured(status):
    assert Verdict.floor(status).score == 0.0
    assert Verdict.floor(status, -0.5).score == -0.5


@pytest.mark.parametrize("status", sorted(UNSCORED_STATUSES | {Status.SCORED}))
def test_only_the_models_own_faults_earn_it(status):
    with pytest.raises(ValueError, match=f"{status.value!r} is not the model's fault"):
        Verdict.floor(status)


def test_unscored_takes_no_status_that_has_a_score():
    assert Verdict.unscored(Status.JUDGE_ERROR).score is None
    with pytest.raises(ValueError, match="'timeout' does not go with score None"):
        Verdict.unscored(Status.TIMEOUT)
