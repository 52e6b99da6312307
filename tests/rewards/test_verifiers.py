import json

import pytest
import reasoning_gym as library
from hypothesis import given
from hypothesis import strategies as st

from rewards.task import Task
from rewards.verdict import Status
from rewards.verifiers.exact_match import exact_match
from rewards.verifiers.format_tags import format_tags
from rewards.verifiers.length import SAMPLE_FACTS, soft_overlong
from rewards.verifiers.reasoning_gym import reasoning_gym
from rewards.verifiers.regex_match import regex_match


def task(reference=None, **metadata):
    return Task(task_id="t", prompt="p", reference=reference, metadata=metadata)


class TestExactMatch:
    def test_white_space_is_one_space(self):
        assert exact_match("  a\n b ", task("a b")).score == 1.0
        assert exact_match("ab", task("a b")).score == 0.0
        assert exact_match("a b c", task("a b")).score == 0.0

    def test_case(self):
        assert exact_match("Paris", task("paris")).score == 0.0
        assert exact_match("Paris", task("paris"), case_sensitive=False).score == 1.0

    def test_blank_answer_and_missing_reference(self):
        assert exact_match(" \n", task("a")).status is Status.NO_ANSWER
        assert exact_match("a", task(None)).status is Status.INVALID_GOLD
        assert exact_match("a", task(" ")).status is Status.INVALID_GOLD


class TestRegexMatch:
    def test_pattern_is_searched(self):
        assert regex_match("so x = 3", task(), pattern=r"x\s*=\s*3").score == 1.0
        assert regex_match("so x = 4", task(), pattern=r"x\s*=\s*3").score == 0.0

    def test_answer_group_of_the_last_match_is_compared(self):
        pattern = r"<a>(?P<answer>.*?)</a>"
        assert regex_match("<a>3</a> no <a> 4 </a>", task("4"), pattern=pattern).score == 1.0
        assert regex_match("<a>4</a> no <a>3</a>", task("4"), pattern=pattern).score == 0.0
        assert regex_match("4", task("4"), pattern=pattern).status is Status.NO_ANSWER
        assert regex_match("<a>4</a>", task(None), pattern=pattern).status is Status.INVALID_GOLD

    def test_reference_as_pattern_matches_the_whole_answer(self):
        assert regex_match(" 42 ", task(r"4\d")).score == 1.0
        assert regex_match("42 or 43", task(r"4\d")).score == 0.0
        assert regex_match("42", task("(")).status is Status.INVALID_GOLD
        assert regex_match("42", task(None)).status is Status.INVALID_GOLD

    def test_malformed_option_is_an_error(self):
        with pytest.raises(ValueError, match="malformed"):
            regex_match("42", task(), pattern="(")


class TestFormatTags:
    @pytest.mark.parametrize(
        "answer",
        [
            "<think>a</think><answer>b</answer>",
            " <think>a\n</think>\n\n<answer>b</answer>\n",
            "<think></think><answer></answer>",
        ],
    )
    def test_accepts(self, answer):
        assert format_tags(answer, task()).score == 1.0

    @pytest.mark.parametrize(
        "answer",
        [
            "",
            "b",
            "<answer>b</answer>",
            "<think>a</think><answer>b</answer><answer>b</answer>",
            "<think>a</think> so <answer>b</answer>",
            "hm <think>a</think><answer>b</answer>",
            "<think>a</think><answer>b</answer> done",
            "<answer>b</answer><think>a</think>",
            "<think><answer>b</think></answer>",
            "<think>" * 50 + "a</think><answer>b</answer>",
        ],
    )
    def test_refuses(self, answer):
        assert format_tags(answer, task()).score == 0.0

    def test_tag_names(self):
        assert format_tags("<why>a</why><out>b</out>", task(), think_tag="why", answer_tag="out").score == 1.0


class TestSoftOverlong:
    def at(self, length, **options):
        options = {"max_tokens": 20480, "buffer_tokens": 4096} | options
        return soft_overlong("x", task(**{SAMPLE_FACTS: {"num_tokens": length}}), **options).score

    def test_worked_values(self):
        assert [self.at(n) for n in (0, 16384, 18432, 20480, 30000)] == [0.0, 0.0, -0.5, -1.0, -1.0]

    @given(st.integers(0, 200), st.integers(1, 100), st.integers(0, 100))
    def test_never_grows_with_length(self, length, buffer, rest):
        options = {"max_tokens": buffer + rest, "buffer_tokens": buffer}
        assert -1 <= self.at(length + 1, **options) <= self.at(length, **options) <= 0

    def test_errors(self):
        with pytest.raises(ValueError, match="buffer_tokens=0"):
            self.at(5, buffer_tokens=0)
        with pytest.raises(ValueError, match="num_tokens"):
            soft_overlong("x", task(), max_tokens=10, buffer_tokens=5)


class TestReasoningGym:
    def entry(self, name, **options):
        dataset = library.create_dataset(name, seed=3, size=5, **options)
        entry = json.loads(json.dumps(dataset[0]))
        return entry["answer"], task(dataset=name, entry=entry, options=options)

    @pytest.mark.parametrize("name", ["gcd", "chain_sum", "letter_counting", "propositional_logic", "countdown"])
    def test_reference_earns_what_the_generators_scorer_pays(self, name):
        gold, problem = self.entry(name)
        if gold is None:  # several answers are right: the entry carries one
            gold = problem.metadata["entry"]["metadata"]["example_answer"]
        assert reasoning_gym(gold, problem).score == 1.0

    @pytest.mark.parametrize("name", ["gcd", "chain_sum", "lcm"])
    def test_reference_inside_a_list_of_candidates_earns_nothing(self, name):
        gold, problem = self.entry(name)
        dataset = library.create_dataset(name, seed=3, size=5)
        answer = f"it is {gold}"
        assert 0 < dataset.score_answer(answer, problem.metadata["entry"]) < 1  # what we do not pay
        assert reasoning_gym(answer, problem).score == 0.0

    def test_own_partial_credit_stays(self):
        gold, problem = self.entry("word_sorting")
        words = gold.split(", ")
        partial = ", ".join([words[-1], *words[1:-1], words[0]])
        dataset = library.create_dataset("word_sorting", seed=3, size=5)
        expected = dataset.score_answer(partial, problem.metadata["entry"])
        assert 0 < expected < 1
        assert reasoning_gym(partial, problem).score == expected

    def test_answer_tag(self):
        gold, problem = self.entry("gcd")
        answer = f"<answer>0</answer> no: <answer> {gold} </answer>"
        assert reasoning_gym(answer, problem, answer_tag="answer").score == 1.0
        assert reasoning_gym(gold, problem, answer_tag="answer").status is Status.NO_ANSWER

    def test_scorer_that_raises_on_the_answer_rejects_it(self):
        _, problem = self.entry("prime_factorization")
        verdict = reasoning_gym("it is many", problem)
        assert (verdict.status, verdict.score) == (Status.REJECTED, 0.0)

    def test_malformed_entries_are_not_the_models_fault(self):
        gold, problem = self.entry("word_sorting")
        broken = {**problem.metadata["entry"], "metadata": {}}
        assert reasoning_gym(gold, task(dataset="word_sorting", entry=broken)).status is Status.INVALID_GOLD
        assert reasoning_gym(gold, task()).status is Status.INVALID_GOLD
        assert reasoning_gym(gold, task(dataset="gcd", entry={"question": "?"})).status is Status.INVALID_GOLD

    def test_blank_answer(self):
        _, problem = self.entry("gcd")
        assert reasoning_gym(" ", problem).status is Status.NO_ANSWER
