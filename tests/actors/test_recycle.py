from dataclasses import replace

import pytest

from actors.ports import LeasedTask
from actors.rules.recycle import recycle
from rewards.judge_tasks import JUDGEMENT, answer_or_label
from rewards.task import Task
from rewards.verdict import Status, Verdict
from tests.builders import make_group

TASK = Task(task_id="t", prompt="What is 2 + 3?", reference="5")


def leased(task=TASK):
    return LeasedTask(lease_id="0.0", task=task)


def judged(*answers, name="g"):
    """A group with a verdict on each text; None was not judged."""
    verdicts = [
        Verdict.unscored(Status.INFRA_ERROR) if text is None else answer_or_label(text, TASK) for text in answers
    ]
    group = make_group(group_id=name, scores=[0.0] * len(answers))
    members = tuple(replace(t, verdict=v) for t, v in zip(group.trajectories, verdicts, strict=True))
    return replace(group, trajectories=members)


def test_a_judged_group_becomes_a_task_whose_label_is_the_verifiers():
    for number in range(20):
        group = judged("it is 5", "it is 6", None, name=f"g{number}")
        (fork,) = recycle(group, leased(), None)
        shown = fork.task.prompt.rpartition("Answer B:" if "Answer B" in fork.task.prompt else "Answer:")[2]
        expected = {"A": "6", "B": "5", "Yes": "5", "No": "6"}[fork.task.metadata[JUDGEMENT]]
        assert f"it is {expected}" in shown
        assert recycle(group, leased(), None)[0].task == fork.task  # the same each time


def test_a_wrong_answer_is_given_back_to_be_checked():
    forks = recycle(judged("it is 6"), leased(), None, share=0.0, reflection_share=1.0)
    assert [("it is 6" in f.task.prompt, f.task.reference) for f in forks] == [(True, "5")]
    assert recycle(judged("it is 5"), leased(), None, share=0.0, reflection_share=1.0) is None


def test_nothing_comes_of_what_nobody_judged_or_of_recycled_tasks():
    assert recycle(judged(None, None), leased(), None, reflection_share=1.0) is None
    (fork,) = recycle(judged("it is 5"), leased(), None)
    assert recycle(judged("it is 5"), leased(fork.task), None, reflection_share=1.0) is None
    with pytest.raises(TypeError):
        recycle(judged("it is 5"), leased(), None, shares=1.0)
