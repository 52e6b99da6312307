from fractions import Fraction

import numpy as np
import pytest

from rewards.config import TaskConfig
from rewards.random_calculation import MAX_DENOMINATOR, MAX_VALUE, random_calculations, random_expression
from rewards.task import Task
from rewards.tasks import load_tasks
from rewards.verdict import Status
from rewards.verifiers.close_number import close_number


def exactly(expression):
    """The value by Python's own arithmetic over rationals, in which `F(3)` is a literal."""
    literals = "".join(f"F({c})" if c.isdigit() else c for c in expression)
    return eval(literals.replace("^F(2)", "**2").replace("^F(3)", "**3"), {"F": Fraction})


def test_references_are_the_exact_values_within_the_bounds():
    rng = np.random.default_rng(5)
    for steps in (1, 3, 6) * 40:
        text, value = random_expression(rng, steps, 9)
        assert exactly(text) == value, text
        assert value.denominator <= MAX_DENOMINATOR
        assert abs(value) <= MAX_VALUE


def test_the_same_seed_gives_the_same_problems_on_every_machine():
    tasks = random_calculations(num_train=2, num_heldout=1, seed=7, max_steps=3)
    asked = [str(task.prompt).split("Calculate ")[1].split(". ")[0] for task in (*tasks.heldout, *tasks.train)]
    assert asked == ["(((7/9) * 8^2) + 3) - 9^3", "8 + 2^2", "(3^2 - 7) - 5^3"]
    assert random_calculations(num_train=2, num_heldout=1, seed=7, max_steps=3) == tasks


def test_they_are_a_task_source_without_repeats():
    tasks = load_tasks(TaskConfig(source="random_calculation", num_train=200, num_heldout=50, options={"max_steps": 2}))
    prompts = [task.prompt for task in (*tasks.train, *tasks.heldout)]
    assert len(set(prompts)) == 250
    assert {task.tags["steps"] for task in tasks.train} == {"1", "2"}
    with pytest.raises(ValueError, match=r"only \d+ distinct expressions of 1 to 1 steps with operands up to 2"):
        random_calculations(num_train=2000, num_heldout=0, seed=0, max_steps=1, max_operand=2)


@pytest.mark.parametrize(
    ("answer", "score"),
    [("6", 1.0), ("6.0", 1.0), ("12/2", 1.0), ("so 7", 0.5 - 1 / 12), ("6.5", 0.75 - 1 / 24), ("-60", 0.0)],
)
def test_close_numbers_are_paid_by_distance(answer, score):
    verdict = close_number(answer, Task(task_id="t", prompt="p", reference="6"))
    assert verdict.score == pytest.approx(score, abs=1e-6)
    exact = close_number(answer, Task(task_id="t", prompt="p", reference="6"), partial=False)
    assert exact.score == float(score == 1.0)


@pytest.mark.parametrize(
    ("answer", "reference", "status"),
    [
        ("none", "1/3", Status.NO_ANSWER),
        ("1/0", "1/3", Status.REJECTED),
        ("9" * 5000, "1/3", Status.REJECTED),
        ("1/3", "a third", Status.INVALID_GOLD),
    ],
)
def test_what_is_no_value(answer, reference, status):
    assert close_number(answer, Task(task_id="t", prompt="p", reference=reference)).status is status
