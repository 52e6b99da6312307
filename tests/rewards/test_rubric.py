import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.combination import combine
from rewards.config import RewardComponent, RewardConfig
from rewards.import_path import ImportPathError
from rewards.rubric import Rubric
from rewards.task import Task
from rewards.verdict import FLOOR_STATUSES, UNSCORED_STATUSES, Status, Verdict

TASK = Task(task_id="t", prompt="p", reference="5")
POISON = "tests.rewards.poison"


def rubric(floor=0.0, clip=None, **components):
    sections = {
        name: RewardComponent(**(part if isinstance(part, dict) else {"verifier": part}))
        for name, part in components.items()
    }
    return Rubric(RewardConfig(components=sections, floor=floor, clip=clip))


def judge(answer="5", **settings):
    return rubric(**settings).judge(answer, TASK)


def test_one_component_passes_through():
    verdict = judge(right="final_number")
    assert (verdict.score, verdict.status, dict(verdict.components)) == (1.0, Status.SCORED, {"right": 1.0})
    assert verdict.seconds > 0


def test_weighted_sum_keeps_the_breakdown():
    right, size = {"verifier": f"{POISON}:fair", "weight": 2.0}, {"verifier": f"{POISON}:length", "weight": -0.25}
    verdict = judge("5", right=right, size=size)
    assert (verdict.score, dict(verdict.components)) == (2.0 - 0.25, {"right": 1.0, "size": 1.0})
    assert judge("wrong", right=right, size=size).score == -1.25
    assert judge("wrong", right=right, size=size, clip=(-1.0, 1.0)).score == -1.0
    assert judge("5", right=right, size=size, clip=(-1.0, 1.0)).score == 1.0


def test_users_may_return_bools_and_numpy_values():
    verdict = judge(right=f"{POISON}:numpy_bool")
    assert verdict.score == 1.0
    assert type(verdict.score) is float


@pytest.mark.parametrize(
    ("verifier", "reason"),
    [
        ("raises", "KeyError: 'lost column'"),
        ("exits_politely", "SystemExit: 3"),
        ("not_a_number", "nan"),
        ("infinite", "inf"),
        ("huge_integer", "unusable"),
        ("text", "returned a str"),
        ("nothing", "returned a NoneType"),
    ],
)
def test_poison_is_an_unscored_infra_error_and_never_zero(verifier, reason):
    verdict = judge(right=f"{POISON}:{verifier}")
    assert (verdict.score, verdict.status) == (None, Status.INFRA_ERROR)
    assert dict(verdict.components) == {"right": None}
    assert reason in verdict.extras["error"]


@pytest.mark.parametrize("verifier", ["invalid_gold", "judge_error"])
def test_unscored_statuses_keep_their_name(verifier):
    verdict = judge(right=f"{POISON}:{verifier}")
    assert (verdict.score, verdict.status.value) == (None, verifier)


def test_a_required_component_without_score_masks_the_sample():
    verdict = judge(right="final_number", taste=f"{POISON}:raises")
    assert (verdict.score, verdict.status) == (None, Status.INFRA_ERROR)
    assert dict(verdict.components) == {"right": 1.0, "taste": None}
    assert "lost column" in verdict.extras["taste"]["error"]


def test_an_optional_component_without_score_is_left_out():
    verdict = judge(right="final_number", taste={"verifier": f"{POISON}:raises", "required": False, "weight": 5.0})
    assert (verdict.score, verdict.status) == (1.0, Status.SCORED)
    assert dict(verdict.components) == {"right": 1.0, "taste": None}


def test_without_any_score_there_is_none_even_if_nothing_was_required():
    verdict = judge(taste={"verifier": f"{POISON}:raises", "required": False})
    assert (verdict.score, verdict.status) == (None, Status.INFRA_ERROR)


def test_faults_of_the_model_earn_the_configured_floor_once():
    settings = {
        "floor": -0.5,
        "right": {"verifier": "final_number", "weight": 10.0},
        "form": {"verifier": f"{POISON}:no_answer", "weight": 3.0},
        "size": {"verifier": f"{POISON}:length", "weight": 0.25},
    }
    verdict = judge("none", **settings)
    assert (verdict.score, verdict.status) == (-0.5 + 0.25 * 4, Status.NO_ANSWER)
    assert dict(verdict.components) == {"right": -0.5, "form": -0.5, "size": 4.0}


def test_a_measured_component_changes_nothing():
    verdict = judge("5", floor=-1.0, right="final_number", form={"verifier": f"{POISON}:no_answer", "weight": 0.0})
    assert (verdict.score, verdict.status) == (1.0, Status.SCORED)
    assert verdict.components["form"] == -1.0


def test_gate():
    settings = {"right": "final_number", "size": {"verifier": f"{POISON}:length", "weight": 0.5, "gate": "right"}}
    assert judge("5", **settings).score == 1.5
    closed = judge("44", **settings)
    assert closed.score == 0.0
    assert dict(closed.components) == {"right": 0.0, "size": 2.0}
    assert closed.extras["gated"] == ["size"]
    assert judge("none", floor=1.0, **settings).score == 1.0  # a fault opens no gate, whatever the floor


def test_a_fault_behind_a_closed_gate_is_nobodys_business():
    settings = {"right": "final_number", "taste": {"verifier": f"{POISON}:raises", "gate": "right"}}
    assert judge("4", **settings).score == 0.0
    assert judge("5", **settings).score is None


def test_a_gate_without_score_leaves_what_is_behind_it_without_score():
    gate = {"verifier": f"{POISON}:raises", "required": False}
    behind = {"verifier": f"{POISON}:length", "gate": "taste"}
    assert judge(right="final_number", taste=gate, size=behind).score is None
    optional = judge(right="final_number", taste=gate, size=behind | {"required": False})
    assert (optional.score, optional.components["size"]) == (1.0, None)


def test_overflowing_sum_is_an_infra_error():
    verdict = judge(size={"verifier": f"{POISON}:length", "weight": 1e308}, more={"verifier": f"{POISON}:length"})
    assert verdict.score is not None
    verdict = judge("5" * 20, size={"verifier": f"{POISON}:length", "weight": 1e308})
    assert (verdict.score, verdict.status) == (None, Status.INFRA_ERROR)


def test_configuration_errors():
    with pytest.raises(ValueError, match="components is empty"):
        Rubric(RewardConfig())
    with pytest.raises(ImportPathError, match=r"reward.components.right: .*did you mean 'final_number'"):
        rubric(right="final_nmber")
    with pytest.raises(ValueError, match=r"components.size.gate='rihgt' names no other component: choose from \['ri"):
        rubric(right="final_number", size={"verifier": f"{POISON}:length", "gate": "rihgt"})
    with pytest.raises(ValueError, match="gate='right' names no other"):
        rubric(right={"verifier": "final_number", "gate": "right"})
    with pytest.raises(ValueError, match=r"unexpected keyword argument 'stict'.*strict"):
        rubric(right={"verifier": "final_number", "options": {"stict": True}})


STATUSES = st.sampled_from(list(Status))
COMPONENT = st.fixed_dictionaries(
    {
        "status": STATUSES,
        "score": st.floats(-2, 2),
        "weight": st.floats(-3, 3),
        "required": st.booleans(),
        "gated": st.booleans(),
    }
)


@given(st.lists(COMPONENT, min_size=1, max_size=5), st.floats(-1, 0))
def test_invariants_for_any_mix_of_verdicts(parts, floor):
    """Masking and floors, checked against a formulation of their own."""
    names = [f"c{i}" for i in range(len(parts))]
    gates = [names[0] if part["gated"] and i else None for i, part in enumerate(parts)]
    sections = {
        name: RewardComponent(verifier="exact_match", weight=p["weight"], required=p["required"], gate=gate)
        for name, p, gate in zip(names, parts, gates, strict=True)
    }
    combined = combine(
        RewardConfig(components=sections, floor=floor),
        {name: _verdict(p) for name, p in zip(names, parts, strict=True)},
    )

    first = parts[0]
    gate_is_unknown = first["status"] in UNSCORED_STATUSES
    gate_is_closed = not gate_is_unknown and not (first["status"] is Status.SCORED and first["score"] > 0)
    has_no_score = [
        bool(gate and gate_is_unknown) or p["status"] in UNSCORED_STATUSES
        for p, gate in zip(parts, gates, strict=True)
        if not (gate and gate_is_closed)
    ]
    live = [p for p, gate in zip(parts, gates, strict=True) if not (gate and gate_is_closed)]
    masked = any(missing and p["required"] for missing, p in zip(has_no_score, live, strict=True))
    if masked:
        assert combined.score is None
    if combined.score is None:
        assert combined.status in UNSCORED_STATUSES
        assert masked or all(score is None for score in combined.components.values())
        return
    counted = [p for missing, p in zip(has_no_score, live, strict=True) if not missing and p["weight"] != 0]
    expected = math.fsum(p["weight"] * p["score"] for p in counted if p["status"] is Status.SCORED)
    faulted = any(p["status"] in FLOOR_STATUSES for p in counted)
    assert combined.score == pytest.approx(expected + (floor if faulted else 0.0), abs=1e-9)
    assert (combined.status in FLOOR_STATUSES) == faulted


def _verdict(part):
    status = part["status"]
    if status in UNSCORED_STATUSES:
        return Verdict.unscored(status)
    return Verdict.floor(status) if status in FLOOR_STATUSES else Verdict.scored(part["score"])
