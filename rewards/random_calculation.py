"""RandomCalculation: generated expressions of any length, as a measure nobody can have seen in training."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from rewards.task import Task, TaskSet
from rewards.tasks import problem_id
from rewards.templates import check_template

PROMPT_TEMPLATE = "Calculate {expression}. Reply with only the number."
MAX_DENOMINATOR = 10_000
MAX_VALUE = 1_000_000
"""Expressions that come to more, or to a finer fraction, at any step are drawn again."""
MAX_REPEATS = 50
"""Draws per distinct problem wanted before the space counts as exhausted."""

OPERATORS = "+-*/"
KINDS = ("integer", "integer", "integer", "fraction", "square", "cube")
"""An operand is a small integer half of the time."""


def random_calculations(
    *,
    num_train: int,
    num_heldout: int,
    seed: int,
    min_steps: int = 1,
    max_steps: int = 4,
    max_operand: int = 9,
    prompt_template: str = PROMPT_TEMPLATE,
) -> TaskSet:
    """Distinct problems with exact answers, tagged `steps`; the first `num_heldout` of them are kept aside.

    The same seed gives the same problems on every machine.

    Args:
        min_steps, max_steps: operations in an expression, evenly drawn.
        max_operand: largest small integer; fractions, squares and cubes are made of them.
        prompt_template: the user turn, with `{expression}`.

    Raises:
        ValueError: a range without numbers, a malformed template, or too few distinct problems.

    Source: arXiv:2507.10532 (digest); operands and bounds are ours.
    """
    if not 1 <= min_steps <= max_steps or max_operand < 2:
        raise ValueError(
            f"min_steps={min_steps}, max_steps={max_steps}, max_operand={max_operand}: an expression has at least one "
            "step, not more than the most, and operands of at least 2"
        )
    check_template("tasks.options.prompt_template", prompt_template, required="expression")
    rng = np.random.default_rng(seed)
    wanted, problems = num_train + num_heldout, dict[object, Task]()
    for index in range(wanted * MAX_REPEATS):
        if len(problems) == wanted:
            break
        steps = int(rng.integers(min_steps, max_steps + 1))
        expression, value = random_expression(rng, steps, max_operand)
        task = Task(
            task_id=f"calculation/{seed}-{index}",
            prompt=prompt_template.format(expression=expression),
            reference=str(value),
            metadata={"steps": steps, "expression": expression},
            tags={"steps": str(steps)},
        )
        problems.setdefault(problem_id(task), task)
    if len(problems) < wanted:
        raise ValueError(
            f"only {len(problems)} distinct expressions of {min_steps} to {max_steps} steps with operands up to "
            f"{max_operand} were found, {wanted} are needed: ask for fewer, or raise max_steps or max_operand"
        )
    tasks = list(problems.values())
    return TaskSet(train=tuple(tasks[num_heldout:]), heldout=tuple(tasks[:num_heldout]))


def random_expression(rng: np.random.Generator, steps: int, max_operand: int) -> tuple[str, Fraction]:
    """An expression with parentheses from left to right, and its exact value within the bounds."""
    while True:
        text, value = _operand(rng, max_operand)
        for step in range(steps):
            operator = OPERATORS[int(rng.integers(len(OPERATORS)))]
            right, operand = _operand(rng, max_operand)
            text = f"({text}) {operator} {right}" if step else f"{text} {operator} {right}"
            value = _applied(value, operator, operand)
            if value.denominator > MAX_DENOMINATOR or abs(value) > MAX_VALUE:
                break
        else:
            return text, value


def _operand(rng: np.random.Generator, largest: int) -> tuple[str, Fraction]:
    """Never 0, so that every division has a value."""
    kind = KINDS[int(rng.integers(len(KINDS)))]
    number = int(rng.integers(1, largest + 1))
    if kind == "fraction":
        below = int(rng.integers(2, largest + 1))
        return f"({number}/{below})", Fraction(number, below)
    if kind == "square":
        return f"{number}^2", Fraction(number**2)
    if kind == "cube":
        return f"{number}^3", Fraction(number**3)
    return str(number), Fraction(number)


def _applied(left: Fraction, operator: str, right: Fraction) -> Fraction:
    operations: Mapping[str, Fraction] = {
        "+": left + right,
        "-": left - right,
        "*": left * right,
        "/": left / right,
    }
    return operations[operator]
