import json

import numpy as np
import pytest

from rewards.judge_tasks import (
    JUDGEMENT,
    answer_or_label,
    critique_order,
    first_error_reward,
    ranking_reward,
    recycled_task,
    reflection_task,
    sum_pairs,
    verdict_label,
)
from rewards.task import Task
from rewards.verdict import Status

TASK = Task(task_id="t", prompt="What is 2 + 3?", reference="5")


def label_task(label):
    return Task(task_id="j", prompt="?", metadata={JUDGEMENT: label})


def test_a_verdict_is_a_label_in_its_box():
    assert verdict_label("So \\boxed{A}", label_task("A")).score == 1.0
    assert verdict_label("\\boxed{A} or rather \\boxed{B}", label_task("A")).score == 0.0
    assert verdict_label("\\boxed{A, B}", label_task("A")).score == 0.0
    assert verdict_label("It is A", label_task("A")).status is Status.NO_ANSWER
    assert verdict_label("\\boxed{A}", TASK).status is Status.INVALID_GOLD


def test_one_reward_for_answers_and_for_verdicts_on_them():
    answered = answer_or_label("it is 5", TASK)
    assert (answered.score, answered.extras["said"]) == (1.0, "it is 5")
    assert answer_or_label("\\boxed{No}", label_task("No")).score == 1.0
    assert answer_or_label("5", label_task("No")).status is Status.NO_ANSWER


def test_recycled_tasks_know_their_label_and_both_labels_come():
    labels, kinds = [], []
    answers, rights = ["it is 5", "it is 6", "", "five {question}"], [True, False, False, True]
    for seed in range(200):
        task = recycled_task(TASK, answers, rights, np.random.default_rng(seed))
        label, is_pair = task.metadata[JUDGEMENT], "Answer B" in task.prompt
        kinds.append(is_pair)
        labels.append(label)
        shown = task.prompt.partition("Answer A:" if is_pair else "Answer:")[2]
        if not is_pair:
            assert ("6" not in shown) == (label == "Yes")
        else:
            first = shown.partition("Answer B:")[0]
            assert ("6" not in first) == (label == "A")
    assert np.mean(kinds) == pytest.approx(0.7, abs=0.1)
    assert {"Yes", "No", "A", "B"} == set(labels)
    assert labels.count("Yes") == pytest.approx(labels.count("No"), abs=25)


def test_groups_without_a_contrast_make_single_answers_and_empty_ones_nothing():
    task = recycled_task(TASK, ["6", "7"], [False, False], np.random.default_rng(0))
    assert task.metadata[JUDGEMENT] == "No"
    assert recycled_task(TASK, [" "], [False], np.random.default_rng(0)) is None
    check = reflection_task(TASK, "it is 6")
    assert check.reference == "5"
    assert "it is 6" in check.prompt
    assert check.task_id != TASK.task_id


def test_the_best_answer_must_be_strictly_on_top():
    task = Task(task_id="c", prompt="?", metadata={"best": "answer-1"})

    def said(**scores):
        return critique_order("So " + json.dumps({"scores": {k.replace("_", "-"): v for k, v in scores.items()}}), task)

    assert said(answer_1=7, answer_2=5).score == 1.0
    for bad in ({"answer_1": 7, "answer_2": 7}, {"answer_2": 5}, {"answer_1": 11, "answer_2": 5}):
        assert said(**bad).score == -1.0
    assert critique_order("no scores", task).score == -1.0


def test_ranking_reward_worked_example():
    gold = {"a": 5, "b": 3, "c": 2}
    assert ranking_reward({"a": 3, "b": 4, "c": 2}, gold) == pytest.approx(1 - 3 / 9)
    assert ranking_reward(gold, gold) == 1.0
    assert ranking_reward({"a": 1, "b": 1, "c": 1}, gold) == pytest.approx(0.5)
    assert ranking_reward({"a": 1}, gold) == 0.0


def test_first_error_worked_example():
    assert first_error_reward(3, 5, 8) == 0.75
    assert [first_error_reward(p, -1, 8) for p in (-1, 2, None)] == [1.0, -1.0, -1.0]
    assert first_error_reward(-1, 5, 8) == -1.0


def test_pairs_about_sums_have_one_right_answer_and_no_favourite_place():
    made = sum_pairs(num_train=200, num_heldout=20)
    labels = [task.metadata[JUDGEMENT] for task in made.train]
    assert 70 < labels.count("A") < 130
    assert len({task.task_id for task in (*made.train, *made.heldout)}) == 220
