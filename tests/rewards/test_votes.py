import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.task import Task
from rewards.verdict import Status
from rewards.verifiers.votes import answer_frequency, majority_vote, reading

TASK = Task(task_id="t", prompt="p")


def boxed(*values):
    return [rf"so \boxed{{{value}}}" if value is not None else "no idea" for value in values]


def scores(verdicts):
    return [verdict.score for verdict in verdicts]


def test_the_most_frequent_value_wins_whatever_its_form():
    verdicts = majority_vote(boxed("1/2", "3", r"\frac{1}{2}", "0.5", "4"), TASK)
    assert scores(verdicts) == [1.0, 0.0, 1.0, 1.0, 0.0]
    assert verdicts[0].extras == {"share": 0.6, "votes": 5}


def test_of_equally_many_the_first_said_wins():
    assert scores(majority_vote(boxed("7", "8", "8", "7"), TASK)) == [1.0, 0.0, 0.0, 1.0]


def test_unreadable_answers_have_no_vote_and_earn_the_floor():
    verdicts = majority_vote(boxed(None, None, None, "5", "5"), TASK)
    assert scores(verdicts) == [0.0, 0.0, 0.0, 1.0, 1.0]
    assert verdicts[0].status is Status.NO_ANSWER
    assert verdicts[3].extras == {"share": 1.0, "votes": 2}


def test_too_few_votes_judge_nobody():
    verdicts = majority_vote(boxed("5", None, None), TASK)
    assert [v.status for v in verdicts] == [Status.INVALID_GOLD, Status.NO_ANSWER, Status.NO_ANSWER]
    assert "min_votes=2" in verdicts[0].extras["error"]


def test_only_the_first_vote_and_all_are_judged():
    answers = boxed("1", "1", "2", "2", "2")
    assert scores(majority_vote(answers, TASK, num_voters=2)) == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_a_single_answer_is_compared_with_the_reference():
    task = Task(task_id="t", prompt="p", reference="they are 5\n#### 5")
    assert scores(majority_vote(boxed("5"), task)) == [1.0]
    assert scores(majority_vote(boxed("6"), task)) == [0.0]
    assert scores(majority_vote(["it is 5"], task, read="last_number")) == [1.0]
    assert majority_vote(boxed("5"), TASK)[0].status is Status.INVALID_GOLD


def test_guarded_text_has_no_vote():
    assert reading(r"\boxed{" + "(" * 200 + "}", "math", "think") is None
    assert reading("<think>\\boxed{5}", "math", "think") is None
    assert reading(r"\boxed{x+1}", "math", None) == reading(r"\boxed{ x+1 }", "math", None)
    assert reading("a  b\nc", "whole", None) == "a b c"


def test_options_are_checked():
    with pytest.raises(ValueError, match="read='maths'"):
        majority_vote(["a"], TASK, read="maths")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="min_votes=0"):
        majority_vote(["a"], TASK, min_votes=0)


def test_frequency_worked_example():
    """A x5, B x2, C x1 of the specification: H = 0.9003, normalised 0.8194."""
    verdicts = answer_frequency(boxed(*"11111223"), TASK)
    assert verdicts[0].extras["entropy"] == pytest.approx(0.9003, abs=1e-4)
    assert verdicts[0].score == pytest.approx(0.0104, abs=1e-4)
    assert verdicts[5].score == pytest.approx(-0.3646, abs=1e-4)
    assert verdicts[7].score == pytest.approx(-0.4896, abs=1e-4)


def test_frequency_of_unreadable_answers_is_nobodys_share():
    assert scores(answer_frequency(boxed("1", "1", None, None), TASK, entropy_weight=0.0)) == [0.5, 0.5, 0.0, 0.0]
    assert scores(answer_frequency(boxed("1", "1"), TASK)) == [1.0, 1.0]


@given(st.lists(st.sampled_from(["1", "2", "3", None]), min_size=2, max_size=12), st.randoms())
def test_votes_do_not_depend_on_the_order_but_for_ties(values, rng):
    before = dict(zip(values, scores(answer_frequency(boxed(*values), TASK)), strict=True))
    shuffled = rng.sample(values, len(values))
    after = dict(zip(shuffled, scores(answer_frequency(boxed(*shuffled), TASK)), strict=True))
    assert all(math.isclose(before[value], after[value], abs_tol=1e-12) for value in before)


@given(st.lists(st.sampled_from(["1", "2", "3"]), min_size=2, max_size=12))
def test_the_entropy_term_leaves_differences_within_a_group_alone(values):
    with_term = scores(answer_frequency(boxed(*values), TASK))
    without = scores(answer_frequency(boxed(*values), TASK, entropy_weight=0.0))
    assert [a - with_term[0] for a in with_term] == pytest.approx([a - without[0] for a in without], abs=1e-12)
