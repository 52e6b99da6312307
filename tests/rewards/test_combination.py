import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.combination import RunningScales, combine, combine_group, group_deviations, saturated
from rewards.config import RewardComponent, RewardConfig
from rewards.verdict import Status, Verdict


def config(floor=0.0, clip=None, **parts):
    return RewardConfig(
        components={name: RewardComponent(verifier="exact_match", **part) for name, part in parts.items()},
        floor=floor,
        clip=clip,
    )


def verdicts(**scores):
    """A score, or a status for a verdict without one."""
    return {name: value if isinstance(value, Verdict) else Verdict.scored(value) for name, value in scores.items()}


UNJUDGED = Verdict.unscored(Status.JUDGE_ERROR)


def test_the_worked_example_of_fapo_format_and_length():
    """Right, flawed, over length, well-formed: 1 - 1 - 0.25 + 0.1; wrong: only the length counts."""
    rules = config(
        correct={}, flawed={"required": False, "gate": "correct", "weight": -1.0},
        overlong={}, format={"weight": 0.1, "gate": "correct"}, clip=(-2.0, 1.2),
    )  # fmt: skip
    assert combine(rules, verdicts(correct=1, flawed=1, overlong=-0.25, format=1)).score == pytest.approx(-0.15)
    wrong = combine(rules, verdicts(correct=0, flawed=0, overlong=-0.25, format=1))
    assert (wrong.score, wrong.extras["gated"]) == (-0.25, ["flawed", "format"])


def test_gated_accumulation_pays_a_lower_level_only_above_every_higher_gate():
    """Worked example of G-RA; an unscored higher level blocks the sample, it is no 0."""
    rules = config(
        submit={"opens_above": 0.5}, edit={"gate": "submit"}, scaffold={"weight": 0.2, "gate": ("submit", "edit")}
    )
    assert combine(rules, verdicts(submit=1.0, edit=1.0, scaffold=1)).score == pytest.approx(2.2)
    assert combine(rules, verdicts(submit=0.4, edit=1.0, scaffold=1)).score == pytest.approx(0.4)
    assert combine(rules, verdicts(submit=1.0, edit=0.0, scaffold=1)).score == pytest.approx(1.0)
    assert combine(rules, verdicts(submit=UNJUDGED, edit=1.0, scaffold=1)).score is None
    assert combine(rules, verdicts(submit=0.4, edit=1.0, scaffold=UNJUDGED)).score == pytest.approx(0.4)


def test_a_veto_cancels_everything_and_needs_a_score():
    rules = config(floor=-1.0, quality={}, honest={"weight": 0.0, "veto_below": 0.5, "required": False})
    vetoed = combine(rules, verdicts(quality=0.9, honest=0.4))
    assert (vetoed.score, vetoed.extras["vetoed_by"], dict(vetoed.components)) == (
        -1.0, ["honest"], {"quality": 0.9, "honest": 0.4},
    )  # fmt: skip
    assert combine(rules, verdicts(quality=0.9, honest=0.5)).score == 0.9
    assert combine(rules, verdicts(quality=0.9, honest=UNJUDGED)).score is None


def test_saturation_keeps_the_ends_and_the_score_as_judged():
    rules = config(a={"weight": 2 / 3, "saturation": 2.0}, b={"weight": 1 / 3, "saturation": 2.0})
    verdict = combine(rules, verdicts(a=0.5, b=1.0))
    assert saturated(0.5, 2.0) == pytest.approx(0.7311, abs=1e-4)
    assert verdict.score == pytest.approx(0.8207, abs=1e-4)
    assert verdict.components == {"a": 0.5, "b": 1.0}
    assert verdict.extras["paid"]["b"] == pytest.approx(1 / 3)


def test_normalised_in_the_group_then_summed():
    rules = config(a={"normalise": "group"}, b={"normalise": "group"})
    rows = [verdicts(a=a, b=b) for a, b in zip((1, 0, 1, 0), (10, 20, 30, 40), strict=True)]
    found = [v.score for v in combine_group(rules, rows, RunningScales())]
    assert found == pytest.approx([-0.342, -1.447, 1.447, 0.342], abs=1e-3)


VALUE = st.one_of(st.floats(-5, 5), st.none())


@given(st.lists(st.tuples(VALUE, st.floats(-5, 5)), min_size=1, max_size=6), st.floats(-3, 3))
def test_masking_a_member_is_removing_it_and_order_and_offsets_mean_nothing(rows, offset):
    rules = config(a={"normalise": "group"}, b={"weight": 0.5})
    made = [verdicts(a=UNJUDGED if a is None else a, b=b) for a, b in rows]
    scores = [v.score for v in combine_group(rules, made, RunningScales())]
    kept = [row for row, score in zip(made, scores, strict=True) if score is not None]
    assert [v.score for v in combine_group(rules, kept, RunningScales())] == [s for s in scores if s is not None]
    backwards = [v.score for v in combine_group(rules, made[::-1], RunningScales())][::-1]
    assert [s is None for s in backwards] == [a is None for a, _ in rows]
    assert all(x == pytest.approx(y) for x, y in zip(scores, backwards, strict=True) if x is not None)
    values = [a for a, _ in rows if a is not None]
    assert abs(math.fsum(group_deviations(values))) < 1e-6
    if len(set(values)) > 1 and max(values) - min(values) > 1e-3:
        moved = group_deviations([value + offset for value in values])
        assert moved == pytest.approx(group_deviations(values), abs=1e-4)


def test_a_running_scale_follows_live_samples_only_and_survives_a_constant():
    rules, scales = config(a={"normalise": "running"}), RunningScales()
    assert [v.score for v in combine_group(rules, [verdicts(a=3.0)] * 2, scales)] == [0.0, 0.0]
    low, high = combine_group(rules, [verdicts(a=1.0), verdicts(a=5.0)], scales)  # of 3, 3, 1, 5: mean 3, variance 2
    assert (low.score, high.score) == pytest.approx((-math.sqrt(2), math.sqrt(2)))
    assert high.components == {"a": 5.0}
    evaluated = [combine_group(rules, [verdicts(a=5.0)], scales, learn=False)[0].score for _ in range(2)]
    assert evaluated == [high.score] * 2


def test_a_fault_pays_the_floor_and_leaves_the_statistics():
    rules = config(floor=-1.0, a={"normalise": "group"})
    rows = [verdicts(a=Verdict.floor(Status.NO_ANSWER)), verdicts(a=0.0), verdicts(a=1.0)]
    assert [v.score for v in combine_group(rules, rows, RunningScales())] == [-1.0, -1.0, 1.0]


def test_a_gate_in_a_list_must_exist():
    with pytest.raises(ValueError, match=r"gate='typo' names no other component"):
        config(a={}, b={"gate": ("a", "typo")})
