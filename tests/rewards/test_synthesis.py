import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.synthesis import agreed_answer, budgets, concept_set, is_well_written

RELEASED = {
    "algebra": 0.0785,
    "counting": 0.1427,
    "geometry": 0.1509,
    "intermediate": 0.0587,
    "number theory": 0.1108,
    "prealgebra": 0.0369,
    "precalculus": 0.0752,
}


def test_budgets_of_the_released_failure_shares():
    expected = {
        "geometry": 23,
        "counting": 22,
        "number theory": 17,
        "algebra": 12,
        "precalculus": 11,
        "intermediate": 9,
        "prealgebra": 6,
    }
    assert budgets(100, RELEASED) == expected


@settings(max_examples=60, deadline=None)
@given(total=st.integers(0, 500), shares=st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_budgets_sum_to_the_total_and_grow_with_failure(total, shares):
    failures = {str(i): share for i, share in enumerate(shares)}
    found = budgets(total, failures)
    assert sum(found.values()) == total
    for a, b in zip(
        sorted(failures, key=failures.__getitem__), sorted(failures, key=failures.__getitem__)[1:], strict=False
    ):
        assert failures[a] == failures[b] or found[a] <= found[b]


def test_concepts_are_distinct_and_go_together():
    together = np.zeros((6, 6))
    together[:3, :3] = 10
    together[3:, 3:] = 10
    vectors = np.repeat(np.eye(2), 3, axis=0)
    rng = np.random.default_rng(0)
    sets = [concept_set(rng, together, vectors, size=3) for _ in range(200)]
    assert all(len(set(chosen)) == 3 for chosen in sets)
    assert sum(len({i // 3 for i in chosen}) == 1 for chosen in sets) > 190
    with pytest.raises(ValueError, match="7 of 6 concepts"):
        concept_set(rng, together, vectors, size=7)


@pytest.mark.parametrize(
    ("grades", "first", "one"),
    [
        (["perfect", "acceptable"], True, True),
        (["perfect", "bad"], False, False),
        (["acceptable", "perfect"], False, True),
        (["acceptable", "acceptable"], False, False),
        ([], False, False),
    ],
)
def test_no_problem_enters_without_its_judges(grades, first, one):
    assert is_well_written("How many?", grades) is first
    assert is_well_written("How many?", grades, judges="one_perfect") is one
    assert not is_well_written("Prove it.", ["perfect", "perfect"])
    assert not is_well_written("word " * 600, ["perfect", "perfect"])


@pytest.mark.parametrize(
    ("answers", "agreed"), [([1, 1, 2, 3], 1), ([1, 2, 3, None], None), ([None, None], None), ([4, None], 4)]
)
def test_an_answer_needs_its_share_of_all_samples(answers, agreed):
    assert agreed_answer(answers) == agreed
