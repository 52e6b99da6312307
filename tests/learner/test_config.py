import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from learner.config import ClippedSurrogate, LearnerConfig, OptimizerConfig, Schedule, Term

KINDS = ("linear", "cosine", "step")


class TestSchedule:
    @given(st.sampled_from(KINDS), st.integers(1, 50), st.integers(0, 20), st.integers(0, 200))
    def test_values_lie_between_its_ends_and_stay_at_the_last(self, kind, steps, warmup, step):
        schedule = Schedule(kind=kind, start=0.9, end=0.1, steps=steps, warmup=warmup)
        value = schedule.at(step)
        assert 0 <= value <= 0.9
        if step >= warmup + steps:
            assert value == pytest.approx(0.1)
        if step == warmup:
            assert value == pytest.approx(0.9)
        if step > warmup:
            assert value <= schedule.at(step - 1) + 1e-12

    @given(st.integers(0, 100), st.floats(0, 1))
    def test_a_complement_is_what_is_left_of_one_and_its_complement_is_itself(self, step, start):
        schedule = Schedule(kind="cosine", start=start, end=0.05, steps=40)
        assert schedule.complement().at(step) == pytest.approx(1 - schedule.at(step))
        assert schedule.complement().complement() == schedule

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("fields", [{}, {"end": 0.0}, {"steps": 5}])
    def test_a_change_needs_an_end_and_a_length(self, kind, fields):
        with pytest.raises(ValidationError, match=f"a {kind} schedule needs `end` and `steps` >= 1"):
            Schedule(kind=kind, **fields)

    @pytest.mark.parametrize("fields", [{"end": 0.1}, {"steps": 5}, {"end": 0.1, "steps": 5}])
    def test_a_constant_has_neither_so_that_a_forgotten_kind_is_noticed(self, fields):
        with pytest.raises(ValidationError, match=r"a constant schedule never reaches .* kind=linear, cosine or step"):
            Schedule(start=0.9, **fields)


class TestTerm:
    def test_short_forms(self):
        term = Term.model_validate({"loss": "clipped_surrogate", "weight": 0.5})
        assert term == Term(loss=ClippedSurrogate(), weight=Schedule(start=0.5))

    @pytest.mark.parametrize(
        "fields", [{"aggregation": "constant"}, {"aggregation_constant": 64.0}, {"aggregation_constant": 0}]
    )
    def test_a_constant_goes_with_its_aggregation(self, fields):
        with pytest.raises(ValidationError, match="aggregation_constant"):
            Term(loss=ClippedSurrogate(), **fields)
        assert Term(loss=ClippedSurrogate(), aggregation="constant", aggregation_constant=64).aggregation_constant == 64


@pytest.mark.parametrize(
    ("section", "fields"),
    [
        (ClippedSurrogate, {"clip_low": 1.0}),
        (ClippedSurrogate, {"clip_high": 0.0}),
        (ClippedSurrogate, {"dual_clip": 1.0}),
        (OptimizerConfig, {"learning_rate": 0.0}),
        (OptimizerConfig, {"betas": (0.9, 1.0)}),
        (OptimizerConfig, {"weight_decay": -0.1}),
        (LearnerConfig, {"num_ranks": 0}),
        (LearnerConfig, {"compute_dtype": "float16"}),
        (LearnerConfig, {"attention": "flash"}),
    ],
)
def test_settings_have_bounds(section, fields):
    with pytest.raises(ValidationError, match=next(iter(fields))):
        section(**fields)
