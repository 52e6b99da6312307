from actors.rollout_worker import EvaluatedTask, PinnedEvaluation
from orchestrator.evaluation import summarise
from rewards.trajectory import PolicyVersion
from rewards.verdict import Status, Verdict


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
