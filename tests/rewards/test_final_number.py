import json
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.task import Task
from rewards.verdict import Status
from rewards.verifiers.final_number import MAX_DIGITS, final_number, reference_number

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k"


def task(reference):
    return Task(task_id="t", prompt="p", reference=reference)


def score(answer, reference, **options):
    verdict = final_number(answer, task(reference), **options)
    assert verdict.status is Status.SCORED, verdict
    return verdict.score


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("5", "5"),
        ("It is 5.", "5"),
        ("5.0", "5"),
        (".5", "0.5"),
        ("#### 1,234", "1234"),
        ("$1,234,567.50", "1234567.5"),
        ("-7", "-7"),
        ("\N{MINUS SIGN}7", "-7"),
        ("-$7", "-7"),
        ("12-5", "5"),  # an operator, not a sign
        ("12 - 19 = -7", "-7"),
        ("**42**", "42"),
        (r"\boxed{42}", "42"),
        ("1e3", "1000"),
        ("72", "48/2=24 clips, 48+24 = 72\n#### 72"),
        ("+08", "8"),
    ],
)
def test_accepts(answer, reference):
    assert score(answer, reference) == 1.0


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("4", "5"),
        ("5 or 6", "5"),
        ("15, 16, 17, 18", "15"),
        ("7", "-7"),
        ("5.000001", "5"),
        ("0.3333333333333333", "0.333333333333333"),
        ("10000000000000000000001", "10000000000000000000000"),  # equal as binary floats
        ("1234", "1.234"),
    ],
)
def test_refuses(answer, reference):
    assert score(answer, reference) == 0.0


@pytest.mark.parametrize("answer", ["", "no idea", "٣", "five"])
def test_no_number_is_no_answer(answer):
    verdict = final_number(answer, task("5"))
    assert (verdict.status, verdict.score) == (Status.NO_ANSWER, 0.0)


@pytest.mark.parametrize("reference", [None, "", "many", "3 or 4", "9" * (MAX_DIGITS + 1)])
def test_unusable_reference_is_not_the_models_fault(reference):
    verdict = final_number("5", task(reference))
    assert (verdict.status, verdict.score) == (Status.INVALID_GOLD, None)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The answer is 42 apples in 2020.", 1.0),
        ("7 times 6\n#### 42", 1.0),
        ("Answer: $42", 1.0),
        ("#### 42, 43, 44", 0.0),
        ("the answer is 42 or 43", 0.0),
        ("the answer is 41. Or rather, the answer is 42", 1.0),
        ("the answer is 42. Or rather, the answer is 41", 0.0),
    ],
)
def test_strict_reads_only_behind_the_last_marker(answer, expected):
    assert score(answer, "42", strict=True) == expected


def test_strict_without_marker_is_no_answer():
    assert final_number("it must be 42", task("42"), strict=True).status is Status.NO_ANSWER


@pytest.mark.parametrize("answer", ["9" * 5000, "1e999999999", "1e-999999999", "1e" + "9" * 10_000])
def test_hostile_literals_are_rejected_at_once(answer):
    start = time.perf_counter()
    verdict = final_number(answer, task("5"))
    assert (verdict.status, verdict.score) == (Status.REJECTED, 0.0)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("pattern", ["1,", "1,234", "-", "1.", "9", "answer is ", "####", "e5", " 1e"])
def test_time_is_linear_in_the_answer(pattern):
    start = time.perf_counter()
    final_number(pattern * (1_000_000 // len(pattern)), task("5"))
    final_number(pattern * (1_000_000 // len(pattern)), task("5"), strict=True)
    assert time.perf_counter() - start < 10


@given(st.fractions(max_denominator=1).map(int), st.text(alphabet="abc \n,=*", max_size=20))
def test_any_integer_is_found_behind_words(number, words):
    assert score(f"{words} {number}", str(number)) == 1.0
    assert score(f"{words} {number:,}", str(number)) == 1.0
    assert score(f"{words} {number + 1}", str(number)) == 0.0


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-1000, max_value=1000, places=4))
def test_value_is_exact(number):
    assert reference_number(task(f"{number:f}")) == Fraction(number)


@pytest.mark.parametrize("name", ["train", "test"])
def test_every_gsm8k_answer_is_accepted(name):
    path = GSM8K / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not part of a clone")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) > 1000
    for row in rows:
        short = row["answer"].rpartition("####")[2].strip()
        for answer in (row["answer"], short, f"The answer is {short}."):
            assert final_number(answer, task(row["answer"])).score == 1.0, row
            assert final_number(answer, task(short)).score == 1.0, row
        wrong = f"The answer is {int(short.replace(',', '')) + 1}."
        assert final_number(wrong, task(row["answer"])).score == 0.0, row
        assert final_number(row["answer"], task(short), strict=True).score == 1.0, row
