import json

import pytest

from rewards.task import Task
from rewards.verdict import Status
from rewards.verifiers.execution import execution_task, traced_values, variable_values
from tests.rewards.sandboxed import ROOMY, needs_sandbox

VALUES = {"total": 6, "names": ["a", "b"], "ok": True, "half": 0.5}


def judge(text, variables=VALUES, **options):
    task = Task(task_id="t", prompt="p", metadata={"variables": variables} if variables is not None else {})
    return variable_values(text, task, **options)


def block(value):
    return f"<answer>{json.dumps(value)}</answer>"


def test_the_share_of_right_variables():
    assert judge(block(VALUES)).score == 1.0
    verdict = judge(block(VALUES | {"total": 7}))
    assert (verdict.score, verdict.extras) == (0.75, {"wrong": ["total"]})
    assert judge(block(VALUES | {"total": 7}), strict=True).score == 0.0
    assert judge(block({"total": 6})).score == 0.25


def test_types_must_match():
    assert judge(block(VALUES | {"ok": 1, "total": 6.0})).score == 0.5


@pytest.mark.parametrize(
    "text",
    [
        '<answer>{"total": 5, "total": 6}</answer>',
        block(VALUES | {"other": 1}),
        block([VALUES, VALUES | {"total": 7}]),
        "<answer>total = 6</answer>",
    ],
)
def test_several_guesses_and_other_forms_are_rejected(text):
    assert (judge(text).status, judge(text).score) == (Status.REJECTED, 0.0)


def test_faults():
    assert judge("no block").status is Status.NO_ANSWER
    assert judge(block({}) * 2).status is Status.NO_ANSWER
    for unusable in (None, {}, ["a"]):
        assert judge(block({}), unusable).status is Status.INVALID_GOLD


PROGRAM = """
import math
def solve(numbers, limit):
    total = 0
    for i, n in enumerate(numbers):
        if n > limit:
            break
        total += n
    root = math.sqrt(total)
    same = limit
    seen = {n for n in numbers}
    helper = lambda x: x
    return total
print("noise")
"""


@needs_sandbox
class TestTracing:
    def test_the_local_variables_when_the_call_ends(self):
        values = traced_values(PROGRAM, "solve", [[4, 5, 90], 10], limits=ROOMY)
        assert values == {"total": 9, "i": 2, "n": 90, "root": 3.0}  # not `same`, which only repeats an argument

    def test_only_the_outermost_call_counts(self):
        source = "def f(n):\n    below = f(n - 1) if n else 0\n    mine = below + 10\n    return mine"
        assert traced_values(source, "f", [2], limits=ROOMY) == {"below": 20, "mine": 30}

    @pytest.mark.parametrize(
        "source",
        [
            "def f(n): raise ValueError(n)",
            "def f(n): return n",
            "import os\ndef f(n):\n    x = os.urandom(4).hex()\n    return x",
            "def f(n):\n    while True: pass",
            "def g(n): return n",
            "def f(n",
        ],
    )
    def test_programs_nobody_can_be_asked_about(self, source):
        assert traced_values(source, "f", [1], limits={"wall_s": 2.0}) is None
        assert execution_task("t", source, "f", [1], limits={"wall_s": 2.0}) is None

    def test_a_task_accepts_what_the_program_does_and_shows_no_values(self):
        task = execution_task("t", PROGRAM, "solve", [[41, 52, 90], 60], limits=ROOMY)
        assert task is not None
        assert "solve([41, 52, 90], 60)" in task.prompt
        assert "93" not in task.prompt
        assert variable_values(block(task.metadata["variables"]), task).score == 1.0
        assert variable_values(block({"total": 92}), task).score == 0.0
