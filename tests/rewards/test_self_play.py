import pytest

from rewards.config import TaskConfig
from rewards.task import Task
from rewards.tasks import load_tasks
from rewards.verdict import Status
from rewards.verifiers.self_play import self_play

PROPOSE = Task(task_id="t", prompt="for 12", reference="12", metadata={"role": "proposer"})


@pytest.mark.parametrize(
    ("answer", "question"),
    [
        ("7 + 5", "7 + 5"),
        ("  (30 - 6) / 2 = ?\nthat is it", "(30 - 6) / 2"),
        ("-3 + 15", "-3 + 15"),
    ],
)
def test_a_problem_that_comes_to_the_answer_is_valid(answer, question):
    verdict = self_play(answer, PROPOSE)
    assert (verdict.score, verdict.extras["question"]) == (1.0, question)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("7 + 6", "comes to 13"),
        ("12", "1 terms"),
        ("0 + 12", "contains the answer"),
        ("1/0 + 12", "not an arithmetic expression"),
        ("2**9**9**9", "not an arithmetic expression"),
        ("3 // 2 + 1", "not an arithmetic expression"),
        ("What is 7 + 5", "not an arithmetic expression"),
        ("1" + "+1" * 31, "32 terms"),
        ("((" * 30, "not an arithmetic expression"),
    ],
)
def test_others_are_worth_nothing_and_say_why(answer, reason):
    verdict = self_play(answer, PROPOSE)
    assert (verdict.score, verdict.extras) == (0.0, {"reason": reason})


def test_without_the_check_a_problem_nobody_can_solve_is_valid():
    assert self_play("7 + 6", PROPOSE, check=False).score == 1.0
    assert self_play("0 + 12", PROPOSE, check=False).score == 0.0
    assert self_play("", PROPOSE).status is Status.NO_ANSWER


def test_a_solver_is_judged_by_the_answer_that_was_given():
    solve = Task(task_id="t~0", prompt="7 + 5", reference="12", metadata={"role": "solver"})
    assert [self_play(a, solve).score for a in ("12", "7 + 5 = 12", "13")] == [1.0, 1.0, 0.0]


def test_the_source_gives_answers_without_problems():
    tasks = load_tasks(TaskConfig(source="self_play", num_train=200, num_heldout=20))
    assert len({task.reference for task in tasks.train}) == 200
    assert {task.metadata["role"] for task in tasks.train} == {"proposer"}
    assert all("role" not in task.metadata for task in tasks.heldout)
    with pytest.raises(ValueError, match="has 298 answers"):
        load_tasks(TaskConfig(source="self_play", num_train=299, num_heldout=20))
