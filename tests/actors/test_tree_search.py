"""DeepSearch's rules on trees built by hand, with the specification's numbers."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from actors.engines.protocol import Completion, SamplingRequest
from actors.search.config import SearchConfig
from actors.search.sampling import search_answers
from actors.search.tree import (
    Node,
    add_child,
    back_up,
    cached,
    chosen_end,
    descend,
    frontier,
    frontier_score,
    local_score,
    next_node,
    nodes_below,
    segment_rewards,
)
from rewards.trajectory import FinishReason, PolicyVersion, VersionSpan

SMALL = SearchConfig(width=2, max_depth=4)


def chain(root, *ends):
    """A way of len(ends) segments; each with log-probs of its own depth."""
    node = root
    for depth, end in enumerate(ends, start=1):
        node = add_child(node, [depth], [-0.1 * depth], end)
    return node


def test_an_end_says_more_of_what_is_near_it():
    root = Node(None)
    end = chain(root, None, None, "correct")
    back_up(end, SMALL)
    assert [node.value for node in end.path] == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1.0])
    assert [node.visits for node in end.path] == [1] * 4
    deep = chain(Node(None), *[None] * 19, "wrong")
    back_up(deep, SearchConfig())
    assert [node.value for node in deep.path][:3] == pytest.approx([-0.1, -0.1, -3 / 21])


def test_positive_replaces_negative_and_negative_never_lowers_positive():
    root = Node(None)
    first = chain(root, None, "wrong")
    back_up(first, SMALL)
    shared = first.path[1]
    assert shared.value == pytest.approx(-2 / 3)
    second = add_child(shared, [9], [-0.1], "correct")
    back_up(second, SMALL)
    assert shared.value == pytest.approx(2 / 3)
    third = add_child(shared, [8], [-0.1], "wrong")
    back_up(third, SMALL)
    assert (shared.value, shared.visits) == (pytest.approx(2 / 3), 3)
    fourth = add_child(shared, [7], [-0.1], "correct")
    back_up(fourth, SMALL)
    assert shared.value == pytest.approx(4 / 3)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=8))
def test_a_wrong_end_never_raises_and_a_right_one_never_lowers(ways):
    root = Node(None)
    for length, is_right in ways:
        end = chain(root, *[None] * (length - 1), "correct" if is_right else "wrong")
        before = [node.value for node in end.path]
        back_up(end, SMALL)
        after = [node.value for node in end.path]
        assert all(a >= b if is_right else a <= b for a, b in zip(after, before, strict=True))
    assert root.visits == len(ways)


def test_before_the_first_end_value_and_curiosity_lead_down():
    root = Node(None, visits=8)
    known = add_child(root, [1], [-0.1], None)
    fresh = add_child(root, [2], [-0.1], None)
    known.value, known.visits = 1.0, 4
    assert local_score(known, SMALL) == pytest.approx(0.25 + 2 * math.sqrt(math.log(8) / 4))
    assert local_score(fresh, SMALL) == 0.0
    assert descend(root, SMALL) is known
    assert descend(root, SearchConfig(width=3)) is root


def test_after_an_end_the_best_of_the_whole_frontier_goes_on():
    root = Node(None)
    end = chain(root, None, None, "correct")
    back_up(end, SMALL)
    other = add_child(root, [5], [-2.0], None)
    one, two = end.path[1], end.path[2]
    assert frontier(root, SMALL) == [one, other, two]
    expected = 0.4 * math.tanh(one.mean_value) + 0.01 * math.sqrt(2 / 4)
    assert frontier_score(two, SMALL) == pytest.approx(expected)
    assert next_node(root, SMALL) is two
    curious = SMALL.model_copy(update={"entropy_weight": 0.4})
    assert frontier_score(other, curious) == pytest.approx(0.4 * math.tanh(0.25) + 0.01 * 0.5 + 0.4 * 2.0)
    assert next_node(root, curious) is other


def test_nothing_goes_on_where_every_node_is_full_or_over():
    root = Node(None)
    chain(root, "wrong")
    assert next_node(root, SMALL) is root
    chain(root, "incomplete")
    assert next_node(root, SMALL) is None
    with pytest.raises(ValueError, match="belong to no answer"):
        add_child(root.children[0], [1], [-0.1], None)
    with pytest.raises(ValueError, match="only an end"):
        back_up(root, SMALL)


def test_correct_before_wrong_before_incomplete_and_the_most_confident_of_equals():
    root = Node(None)
    unsure, sure = add_child(root, [1], [-3.0], "wrong"), add_child(root, [2], [-0.5], "wrong")
    cut = add_child(root, [3], [-0.01], "incomplete")
    assert chosen_end([unsure, cut, sure]) is sure
    right = add_child(root, [4], [-9.0], "correct")
    assert chosen_end([unsure, cut, sure, right]) is right
    assert chosen_end([cut]) is cut
    assert chosen_end([]) is None


def test_rewards_of_segments_and_what_is_kept_for_the_next_round():
    root = Node(None)
    end = chain(root, None, "correct")
    back_up(end, SMALL)
    assert segment_rewards(end) == pytest.approx([math.tanh(2 / 3), 1.0])
    ends = [node for node in nodes_below(root) if node.end]
    assert cached(ends, 1, 4) == [end]
    assert cached(ends, 2, 4) == []
    assert cached(ends, 0, 4) == []


class CountingEngine:
    """Continues with the next number, and at 3 stops in the first child only; log-prob = -number."""

    def __init__(self):
        self.calls = []

    async def generate(self, prompt_token_ids, request):
        self.calls.append((list(prompt_token_ids), request.num_samples, request.max_new_tokens))
        first = prompt_token_ids[-1] + 1
        tokens = np.arange(first, first + request.max_new_tokens, dtype=np.int32)
        span = (VersionSpan(0, len(tokens), PolicyVersion(len(self.calls))),)
        return [
            Completion(
                token_ids=tokens,
                logprobs=-tokens.astype(np.float32),
                versions=span,
                finish_reason=FinishReason.STOP if i == 0 and tokens[-1] >= 3 else FinishReason.LENGTH,
            )
            for i in range(request.num_samples)
        ]


async def test_a_search_gives_whole_answers_with_the_log_probs_and_versions_of_their_segments():
    engine, judged = CountingEngine(), []

    async def judge(answers):
        judged.extend(answer.token_ids.tolist() for answer in answers)
        return [True] * len(answers)

    request = SamplingRequest(max_new_tokens=5, num_samples=3, seed=7)
    config = SearchConfig(segment_tokens=2, width=2, max_depth=8)
    answers = await search_answers(engine, [0], request, judge, config)
    assert engine.calls[:2] == [([0], 2, 2), ([0, 1, 2], 2, 2)]
    assert [a.token_ids.tolist() for a in answers] == judged[:3]
    assert answers[0].token_ids.tolist() == [1, 2, 3, 4]
    assert answers[0].logprobs.tolist() == [-1, -2, -3, -4]
    assert answers[0].versions == (VersionSpan(0, 2, PolicyVersion(1)), VersionSpan(2, 4, PolicyVersion(2)))
    assert {len(a.token_ids) for a in answers} <= {4, 5}
    assert all(len(a.token_ids) == 5 for a in answers if a.finish_reason is FinishReason.LENGTH)


async def test_a_tree_that_is_full_gives_what_it_has():
    async def judge(answers):
        return [False] * len(answers)

    config = SearchConfig(segment_tokens=8, width=2, max_depth=1)
    request = SamplingRequest(max_new_tokens=8, num_samples=5)
    answers = await search_answers(CountingEngine(), [0], request, judge, config)
    assert len(answers) == 2
