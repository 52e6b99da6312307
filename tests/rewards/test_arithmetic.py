import re
from functools import lru_cache

import pytest

from rewards import arithmetic
from rewards.arithmetic import PROMPT_TEMPLATE, arithmetic_tasks, problem_key
from rewards.config import TaskConfig
from rewards.tasks import load_tasks
from rewards.verifiers.final_number import final_number
from rewards.verifiers.reasoning_gym import reasoning_gym

EXPRESSION = re.compile(r"Calculate (\d+) ([+-]) (\d+)\. Reply with only the number\.")


@lru_cache
def drawn(seed=0):
    return arithmetic_tasks(num_train=5000, num_heldout=300, seed=seed)


@pytest.fixture
def few_draws(monkeypatch):
    """A smaller space for tests that are not about its size: drawing the whole one takes a second."""
    monkeypatch.setattr(arithmetic, "NUM_DRAWS", 1 << 11)


def small(**fields):
    return arithmetic_tasks(**({"num_train": 1000, "num_heldout": 20, "seed": 0} | fields))


def read(task):
    """The problem as it stands in the prompt, read without the code under test."""
    left, operator, right = EXPRESSION.fullmatch(task.prompt).groups()
    return int(left), operator, int(right)


def unordered(task):
    left, operator, right = read(task)
    return operator, *sorted((left, right))


def test_the_space_holds_at_least_five_thousand_distinct_training_problems_beside_the_heldout_ones():
    tasks = drawn()
    assert (len(tasks.train), len(tasks.heldout)) == (5000, 300)
    distinct = {unordered(t) if read(t)[1] == "+" else read(t) for t in (*tasks.train, *tasks.heldout)}
    assert len(distinct) == 5300
    assert len({t.task_id for t in (*tasks.train, *tasks.heldout)}) == 5300


def test_no_heldout_problem_is_trained_on_with_its_operands_in_either_order():
    for tasks in (drawn(), drawn(seed=1)):
        assert not {unordered(t) for t in tasks.train} & {unordered(t) for t in tasks.heldout}


def test_references_are_right_and_the_prompt_is_fixed():
    for task in (*drawn().train, *drawn().heldout):
        left, operator, right = read(task)
        assert task.reference == str(left + right if operator == "+" else left - right)
    assert PROMPT_TEMPLATE == "Calculate {expression}. Reply with only the number."


def test_operands_have_one_or_two_digits_and_both_operators_occur():
    problems = [read(task) for task in drawn().train]
    assert {operator for _, operator, _ in problems} == {"+", "-"}
    assert min(min(a, b) for a, _, b in problems) == 0
    assert max(max(a, b) for a, _, b in problems) == 99
    assert all((a < 10) == (b < 10) for a, _, b in problems)  # as the generator draws them


def test_half_of_the_heldout_problems_are_covered_by_the_expert():
    coverage = [task.tags["coverage"] for task in drawn().heldout]
    assert (coverage.count("covered"), coverage.count("uncovered")) == (150, 150)
    for task in (*drawn().train, *drawn().heldout):
        left, _, right = read(task)
        assert task.tags["coverage"] == ("covered" if max(left, right) <= 59 else "uncovered")


@pytest.mark.usefixtures("few_draws")
def test_the_heldout_problems_do_not_depend_on_how_many_are_trained_on():
    assert small(num_train=10).heldout == small().heldout
    assert small(num_train=10).train == small().train[:10]


@pytest.mark.usefixtures("few_draws")
def test_the_seed_decides_everything():
    assert small() == small()
    assert {t.task_id for t in small(seed=1).heldout} != {t.task_id for t in small().heldout}


def test_the_expert_answers_covered_training_problems_and_no_others():
    for task in drawn().train:
        expected = [task.reference] if task.tags["coverage"] == "covered" else []
        assert [response.text for response in task.expert] == expected
        assert all(response.logprobs is None for response in task.expert)
    assert not any(task.expert for task in drawn().heldout)


@pytest.mark.usefixtures("few_draws")
def test_the_experts_range_and_form_are_options():
    tasks = small(expert_max_operand=29, expert_template="{expression} = {answer}")
    covered = [task for task in tasks.train if task.expert]
    assert covered
    for task in covered:
        left, operator, right = read(task)
        assert max(left, right) <= 29
        assert task.expert[0].text == f"{left} {operator} {right} = {task.reference}"


def test_both_verifiers_pay_the_right_answer_and_only_that():
    for task in drawn().heldout[:20]:
        wrong = str(int(task.reference) + 1)
        assert final_number(f"It is {task.reference}.", task).score == 1.0
        assert final_number(wrong, task).score == 0.0
        assert reasoning_gym(task.reference, task).score == 1.0
        assert reasoning_gym(wrong, task).score < 1.0


@pytest.mark.usefixtures("few_draws")
def test_a_config_loads_the_same_tasks():
    config = TaskConfig(source="arithmetic", num_train=100, num_heldout=20, seed=3, options={"expert_max_operand": 29})
    assert load_tasks(config) == small(num_train=100, seed=3, expert_max_operand=29)


def entry(expression):
    return {"metadata": {"expression": expression}}


def test_a_sum_is_one_problem_in_both_orders_and_a_difference_is_two():
    assert problem_key(entry("31 + 7")) == problem_key(entry("7 + 31")) == (7, "+", 31)
    assert problem_key(entry("31 - 7")) != problem_key(entry("7 - 31"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heldout": 3}, "num_heldout=3 must be even"),
        ({"num_train": 12000}, "num_train=12000: only 1... distinct problems are left"),
        ({"expert_max_operand": 99}, "num_heldout=20 with options.expert_max_operand=99: only 0 uncovered"),
        ({"expert_max_operand": 0}, "only . covered problems, 10 needed"),
        ({"expert_template": "the answer"}, r"expert_template='the answer' lacks \{answer\}"),
        ({"expert_template": "{{answer}}"}, r"lacks \{answer\}"),
        ({"expert_template": "{answer} {units}"}, r"asks for \{units\}, which does not exist: known are \{answer\}, "),
        ({"expert_template": "{answer"}, "is not a template"),
        ({"prompt_template": "What?"}, r"prompt_template='What\?' lacks \{expression\}"),
        ({"prompt_template": "{expression} = {answer}"}, r"asks for \{answer\}"),
    ],
)
@pytest.mark.usefixtures("few_draws")
def test_bad_options_are_one_clear_error(fields, message):
    with pytest.raises(ValueError, match=message):
        small(**fields)
