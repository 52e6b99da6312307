import pytest

from orchestrator.evaluate_model import AnsweredTask, _estimate, by_split, evaluate_model
from orchestrator.load_config import load_run_config
from rewards.task import Task
from rewards.verdict import Status, Verdict

RIGHT, WRONG, UNSCORED = Verdict.scored(1.0), Verdict.scored(0.0), Verdict.unscored(Status.INFRA_ERROR)


def test_pass_at_k_is_a_mean_over_tasks():
    """Of four samples 4, 2 and 0 are right: pass@1 is (1 + 1/2 + 0) / 3, pass@2 (1 + 5/6 + 0) / 3."""
    counts = [(4, 4), (4, 2), (4, 0)]
    assert _estimate(counts, 1).value == pytest.approx(0.5)
    assert _estimate(counts, 2).value == pytest.approx((1 + 5 / 6) / 3)
    assert _estimate(counts, 1).n == 3


def test_equal_answers_everywhere_still_have_an_interval():
    """Resampling ten zeros gives zero; a share of 0 in 10 does not rule out 0.2."""
    none = _estimate([(4, 0)] * 10, 1)
    assert (none.value, none.low) == (0.0, 0.0)
    assert 0.2 < none.high < 0.35


def test_tasks_with_too_few_scored_samples_are_left_out():
    assert _estimate([(1, 1), (4, 0)], 2).n == 1
    assert _estimate([(1, 1)], 2) is None


def test_splits_and_unscored_samples():
    tasks = [Task(task_id=str(i), prompt="x", tags={"kind": "ab"[i % 2]}) for i in range(4)]
    verdicts = [[RIGHT, RIGHT], [WRONG, UNSCORED], [RIGHT, WRONG], [WRONG, WRONG]]
    results = by_split(
        [AnsweredTask(t, ("",) * 2, tuple(v)) for t, v in zip(tasks, verdicts, strict=True)], "kind", [1, 2]
    )
    assert set(results) == {"all", "a", "b"}
    assert results["a"].pass_at[1].value == 0.75
    assert results["b"].pass_at[1].value == 0.0
    assert results["b"].pass_at[2].n == 1
    assert (results["all"].num_tasks, results["all"].unscored) == (4, 1)


def test_votes_and_reasoning_of_the_same_samples():
    """Two of three say 5, which is right; the reasoning of one of them is unsound, of the other unjudged."""
    answers = ("so 5", "thus 5", "it is 6")
    verdicts = tuple(
        Verdict(score=float(right), status=Status.SCORED, components={"sound": sound}, correct=right)
        for right, sound in ((True, 0.0), (True, None), (False, 1.0))
    )
    answered = [AnsweredTask(Task(task_id="t", prompt="2 + 3"), answers, verdicts)]
    result = by_split(answered, None, [1, 2, 3], majority="last_number", reasoning="sound")["all"]
    assert [result.majority_at[k].value for k in (1, 2, 3)] == pytest.approx([2 / 3, 2 / 3, 1.0])
    assert {k: e.value for k, e in result.cot_pass_at.items()} == {1: 0.0, 2: 0.0}
    with pytest.raises(ValueError, match="no component 'logic'"):
        by_split(answered, None, [1], reasoning="logic")


def test_sampled_judged_and_counted_with_a_real_model(tiny_model_path):
    """The tiny model has learned sums below 20; it answers with a number each time."""
    import asyncio

    config = load_run_config(
        "grpo",
        [
            "rollout.engine={kind: transformers, max_model_len: 96}",
            "rollout.sampling.max_new_tokens=12",
            "reward.components={right: {verifier: final_number}}",
        ],
    )
    tasks = [
        Task(task_id=f"{a}{b}", prompt=f"Calculate {a} + {b}. Reply with only the number.", reference=str(a + b))
        for a in range(2, 5)
        for b in range(2, 4)
    ]
    results = asyncio.run(evaluate_model(config, tiny_model_path, tasks, ks=[1, 2], num_samples=2, temperature=1.0))
    assert results["all"].num_tasks == 6
    assert results["all"].unscored == 0
    assert 0 <= results["all"].pass_at[1].value <= results["all"].pass_at[2].value <= 1
