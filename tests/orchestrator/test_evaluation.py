import pytest

from actors.rollout_worker import EvaluatedTask, PinnedEvaluation
from orchestrator.evaluation import summarise
from rewards.combination import combine
from rewards.config import RewardComponent, RewardConfig
from rewards.trajectory import PolicyVersion
from rewards.verdict import Status, Verdict
from rewards.wire import verdict_from_json, verdict_to_json


def answered(name: str, coverage: str, *scores: float | None) -> EvaluatedTask:
    verdicts = tuple(
        Verdict.unscored(Status.INFRA_ERROR) if score is None else Verdict.scored(score) for score in scores
    )
    return EvaluatedTask(name, {"coverage": coverage}, ("",) * len(scores), verdicts)


def test_accuracy_is_reported_whole_and_by_tag_and_unscored_samples_are_not_failures():
    tasks = (
        answered("a", "covered", 1.0),
        answered("b", "covered", 0.0),
        answered("c", "uncovered", 0.0),
        answered("d", "uncovered", None),
    )
    evaluation = summarise(PinnedEvaluation(PolicyVersion(7), 6, 1.0, tasks), "coverage")
    assert evaluation.step == 6
    whole, covered, uncovered = (evaluation.splits[k] for k in ("all", "covered", "uncovered"))
    assert (whole.n, whole.correct, whole.unscored) == (3, 1, 1)
    assert covered.accuracy == 0.5
    assert uncovered.accuracy == 0.0
    # Wilson interval of 1 of 2 at 95 %, by hand: centre 0.5, half width z*sqrt(1/8 + z^2/16)/(1 + z^2/2)
    z = 1.959963984540054
    half = z * (0.25 / 2 + z**2 / 16) ** 0.5 / (1 + z**2 / 2)
    assert abs(covered.low - (0.5 - half)) < 1e-9
    assert abs(covered.high - (0.5 + half)) < 1e-9


def test_an_evaluation_in_which_nothing_was_scored_has_the_widest_interval():
    evaluation = summarise(PinnedEvaluation(PolicyVersion(0), 0, 1.0, (answered("a", "covered", None),)), None)
    assert (evaluation.splits["all"].low, evaluation.splits["all"].high) == (0.0, 1.0)


def test_right_is_what_the_success_component_says_and_not_what_is_paid():
    """A wrong answer is paid for its form, a right one is charged more for its length than it earns."""
    parts = {
        "correct": RewardComponent(verifier="final_number"),
        "form": RewardComponent(verifier="format_tags", weight=0.5),
        "length": RewardComponent(verifier="soft_overlong", weight=2.0),
    }
    config = RewardConfig(components=parts)
    paid_wrong = combine(config, {n: Verdict.scored(s) for n, s in {"correct": 0, "form": 1, "length": 0}.items()})
    charged_right = combine(config, {n: Verdict.scored(s) for n, s in {"correct": 1, "form": 0, "length": -1}.items()})
    assert (paid_wrong.score, charged_right.score) == (0.5, -1.0)
    tasks = tuple(EvaluatedTask(n, {}, ("",), (v,)) for n, v in {"a": paid_wrong, "b": charged_right}.items())
    assert [v.is_right for task in tasks for v in task.verdicts] == [False, True]
    assert summarise(PinnedEvaluation(PolicyVersion(0), 0, 1.0, tasks), None).splits["all"].correct == 1
    assert verdict_from_json(verdict_to_json(charged_right)).is_right


def test_a_success_that_could_be_missing_is_refused():
    with pytest.raises(ValueError, match=r"reward\.success='form' is optional"):
        RewardConfig(components={"form": RewardComponent(verifier="format_tags", required=False)}, success="form")
