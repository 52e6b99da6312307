import itertools
import json
import re
from pathlib import Path

import pytest

from rewards.task import Task
from rewards.verdict import Status
from rewards.verifiers.next_segment import next_segment

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "test.jsonl"


def judge(answer, reference="The dog ran home. It slept.", **options):
    return next_segment(answer, Task(task_id="t", prompt="p", reference=reference), **options)


@pytest.mark.parametrize(
    "answer", ["The dog ran home", "the DOG ran home!", "<think>hm</think> The dog ran home. It slept."]
)
def test_a_prefix_of_the_reference_is_paid(answer):
    assert judge(answer).score == 1.0


@pytest.mark.parametrize(
    "answer", ["The cat ran home.", "The dog", "dog ran home it", "The dog ran home. It slept. Then more.", "It slept."]
)
def test_anything_else_is_not(answer):
    assert judge(answer).score == 0.0


def test_short_references_must_be_whole():
    assert judge("Yes", reference="Yes indeed").score == 0.0
    assert judge("Yes indeed", reference="Yes indeed").score == 1.0


def test_partial_pay_stops_at_the_first_wrong_word():
    assert judge("The dog ran home.", partial=True).score == pytest.approx(4 / 6)
    assert judge("The dog ran home. He slept.", partial=True).score == pytest.approx(4 / 6)
    assert judge("The dog ran home. It slept. " + "More. " * 6, partial=True).score == pytest.approx(6 / 12)
    assert judge("The dog", partial=True).score == 0.0


def test_answer_blocks():
    assert judge("so <answer>The dog ran home</answer>", answer_tag="answer").score == 1.0
    for answer in ("The dog ran home", "<answer>The dog ran home</answer><answer>b</answer>", "</answer>a<answer>"):
        assert judge(answer, answer_tag="answer").status is Status.NO_ANSWER, answer


def test_faults():
    assert judge("", "a b").status is Status.NO_ANSWER
    assert judge("<think>The dog ran home", "a b").status is Status.NO_ANSWER
    assert judge("a", reference=None).status is Status.INVALID_GOLD
    assert judge("a", reference=" ... ").status is Status.INVALID_GOLD
    with pytest.raises(ValueError, match="min_words=0 would pay for saying nothing"):
        judge("a", min_words=0)


def test_the_next_sentence_of_every_gsm8k_problem():
    if not GSM8K.exists():
        pytest.skip(f"{GSM8K} is not part of a clone")
    count = 0
    for line in GSM8K.read_text().splitlines():
        sentences = re.split(r"(?<=[.?!])\s+", json.loads(line)["question"].strip())
        for shown, following in itertools.pairwise(sentences):
            if not re.search(r"\w", following):
                continue
            count += 1
            assert judge(following, following).score == 1.0
            if re.findall(r"\w+", shown.lower()) != re.findall(r"\w+", following.lower()):
                assert judge(shown, following).score == 0.0, (shown, following)
    assert count > 2000
