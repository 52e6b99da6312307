import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.task import Task
from rewards.verdict import Status
from rewards.verifiers.math_answer import math_answer

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k"


def judge(answer, reference, *, boxed=True, options=None, **metadata):
    text = rf"so \boxed{{{answer}}}" if boxed else answer
    return math_answer(text, Task(task_id="t", prompt="p", reference=reference, metadata=metadata), **(options or {}))


def accepts(answer, reference):
    verdict = judge(answer, reference)
    assert verdict.status is Status.SCORED or verdict.score == 0.0, verdict
    return verdict.score == 1.0


EQUAL = [
    ("1.5", r"\frac{3}{2}"),
    (r"1\frac{1}{2}", r"\frac{3}{2}"),
    (r"\dfrac32", "1.5"),
    ("3/2", r"\frac{3}{2}"),
    ("½", "0.5"),
    ("5½", "5.5"),
    ("1,234", "1234"),
    (r"1{,}234", "1234"),
    (r"1\,234\,567", "1234567"),
    (r"0.\overline{3}", r"\frac{1}{3}"),
    (r"2.5 \times 10^{3}", "2500"),
    (r"50\%", "0.5"),
    (r"50\%", "50"),
    ("−7", "-7"),
    (r"\{1, 2\}", "2, 1"),
    ("1, 1, 2", "2, 1"),
    (r"1 \text{ and } 2", r"\{1,2\}"),
    (r"(1, 2)", r"\left(1,\,2\right)"),
    (r"(100,200)", "(100, 200)"),
    (r"\pm 3", r"\{3, -3\}"),
    (r"x > 3", r"(3, \infty)"),
    (r"(3, \infty)", r"x > 3"),
    (r"3 < x", r"x > 3"),
    (r"-1 \le x < 2", r"[-1, 2)"),
    (r"x \in [-1, 2)", r"-1 \leq x < 2"),
    (r"(-\infty, 0) \cup (1, 2)", r"(1,2) \cup (-\infty,0)"),
    (r"\varnothing", r"\emptyset"),
    (r"\mathbb{R}", r"(-\infty, \infty)"),
    ("x = 5", "5"),
    ("5", "x=5"),
    ("x = 1, y = 2", "y = 2, x = 1"),
    ("2x + 2y = 4", "x + y - 2 = 0"),
    ("y = 2x + 1", "2x - y + 1 = 0"),
    ("2 + 3 = 5", "5"),
    ("x^2 + 2x + 1", "(x+1)^2"),
    ("x²", "x^{2}"),
    ("√2", r"\sqrt{2}"),
    (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"),
    (r"\sin^2 x + \cos^2 x", "1+0x"),
    (r"2\pi", "2π"),
    (r"\sqrt{-4}", "2i"),
    (r"5 \text{ cm}", "5"),
    ("5", r"5 \text{ cm}"),
    (r"5 \text{ cm}^2", r"5\text{ cm}^{2}"),
    (r"90^\circ", "90"),
    (r"\$5", "5"),
    (r"\text{Friday}", "friday"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"),
    (r"\boxed{7}", "7"),
    ("0.3333333", r"\frac{1}{3}"),
]

UNEQUAL = [
    ("1.49999", r"\frac{3}{2}"),
    (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),
    (r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
    ("0.0000001", "0.0000002"),
    ("0.0000001", "0"),
    (r"50\%", r"51\%"),
    (r"50\%", "5"),
    ("(1, 2)", r"\{1, 2\}"),
    ("(2, 1)", "(1, 2)"),
    ("[1, 2]", "(1, 2)"),
    ("[1, 2)", "[1, 2]"),
    ("3, 4", "3"),
    ("3 or 4", "3"),
    (r"\pm 3", "3"),
    ("2+2=5", "5"),
    ("x > 3", r"[3, \infty)"),
    ("x < 3", r"(3, \infty)"),
    ("X", "x"),
    ("x_1", "x_2"),
    ("y = 5", "x = 5"),
    ("x = 1, y = 2", "x = 2, y = 1"),
    ("x + y = 3", "x + y = 2"),
    ("x = x", "y = y"),
    (r"5 \text{ m}", r"5 \text{ cm}"),
    (r"\frac{0}{0}", "0"),
    ("22", "2²"),
    (r"\frac{51}{2}", "5½"),
    ("ｘ", "x"),
    ("х", "x"),  # a Cyrillic letter
    ("i", "1"),
    ("x^2 + 1", "x^2 + x"),
    ("import os", "5"),
    ("__import__('os').system('true')", "5"),
]


@pytest.mark.parametrize(("answer", "reference"), EQUAL)
def test_policy_accepts(answer, reference):
    assert accepts(answer, reference)


@pytest.mark.parametrize(("answer", "reference"), UNEQUAL)
def test_policy_refuses_in_both_directions(answer, reference):
    assert not accepts(answer, reference)
    assert judge(reference, answer).score in (0.0, None)


@pytest.mark.parametrize("value", sorted({value for pair in EQUAL for value in pair}))
def test_every_gold_accepts_itself(value):
    assert accepts(value, value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{3} or \boxed{4}", 1.0),
        (r"\boxed{4} or \boxed{3}", 0.0),
        (r"<think>\boxed{4}</think> it is \boxed{3}", 0.0),
        (r"<think>\boxed{3}</think> it is \boxed{4}", 1.0),
        (r"\boxed{\frac{8}{2}}", 1.0),
    ],
)
def test_last_box_outside_the_thinking_counts(text, expected):
    verdict = judge(text, "4", boxed=False)
    assert (verdict.status, verdict.score) == (Status.SCORED, expected)


@pytest.mark.parametrize(
    "text",
    ["", "4", r"<think>\boxed{4}", r"<think>\boxed{4}</think>", r"\boxed{4", r"\boxed{}", r"\boxed{\,}",
     "\\boxed{\N{ZERO WIDTH SPACE}}", r"\boxed{4} \boxed{5"],
)  # fmt: skip
def test_nothing_to_judge(text):
    verdict = judge(text, "4", boxed=False)
    assert (verdict.status, verdict.score) == (Status.NO_ANSWER, 0.0)


@pytest.mark.parametrize("reference", [None, "", r"\boxed{}", "1 = 2", r"\frac{", "9" * 5000])
def test_unusable_reference_is_not_the_models_fault(reference):
    assert judge("5", reference).status is Status.INVALID_GOLD


@pytest.mark.parametrize(
    "candidate",
    ["9" * 4001, "9^{9^{9^{9^{9}}}}", "20000!", "(5!)!", "5!!", "{" * 100 + "1" + "}" * 100, r"\sum_{k=1}^{99999999} k",
     r"\binom{99999}{50000}", r"\int_0^1 e^{x^2} dx", "2^{999999}", "(9^{9})^{99999}", "x" * 5000,
     "4\N{RIGHT-TO-LEFT OVERRIDE}", "4\N{COMBINING LONG STROKE OVERLAY}"],
)  # fmt: skip
def test_hostile_candidates_are_rejected_at_once(candidate):
    judge("1", r"\sqrt{2}")  # the parser's import is not on the clock
    start = time.perf_counter()
    verdict = judge(candidate, "5")
    assert (verdict.status, verdict.score) == (Status.REJECTED, 0.0)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("pattern", ["\\boxed{", "\\boxed{1}", "{", "}", "<think>", "\\", "1,", "$"])
def test_extraction_is_linear(pattern):
    start = time.perf_counter()
    judge(pattern * (400_000 // len(pattern)), "5", boxed=False)
    assert time.perf_counter() - start < 5


def test_choices():
    for answer in ("B", "(B)", "B.", r"\text{B}", "[b]"):
        assert judge(answer, "B", answer_type="choice").score == 1.0
    for answer in ("A", "A, B", "AB", "B because", "(A) or (B)"):
        assert judge(answer, "B", answer_type="choice").score == 0.0


def test_fallbacks():
    assert judge("It is 5 cm", "5", boxed=False, options={"fallback": "last_number"}).score == 1.0
    assert judge("x=5", "5", boxed=False, options={"fallback": "whole"}).score == 1.0
    assert judge("It is 5", "5", boxed=False).status is Status.NO_ANSWER


@given(st.fractions(max_denominator=99), st.fractions(max_denominator=99))
def test_fractions_are_exact(first, second):
    spelled = rf"\frac{{{first.numerator}}}{{{first.denominator}}}"
    assert accepts(spelled, f"{second.numerator}/{second.denominator}") == (first == second)


@pytest.mark.parametrize("name", ["train", "test"])
def test_every_gsm8k_answer_is_accepted(name):
    path = GSM8K / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not part of a clone")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) > 1000
    for row in rows:
        short = row["answer"].rpartition("####")[2].strip()
        assert judge(short, row["answer"]).score == 1.0, row
        assert judge(short + "1", row["answer"]).score == 0.0, row
