import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.rescoring import BalancedWeights, preference_pairs, sample_balanced_weights, trace_back


def test_a_parent_takes_the_mean_of_its_revisions():
    scores = {"a": 0.1, "a1": 0.6, "a2": 0.8, "b": 0.5}
    assert trace_back(scores, {"a1": "a", "a2": "a"}) == pytest.approx({"a": 0.7, "a1": 0.6, "a2": 0.8, "b": 0.5})


def test_from_the_leaves_up_and_past_what_was_not_judged():
    scores = {"root": 0.0, "left": 0.1, "right": None, "leaf": 0.9, "lost": None}
    parents = {"left": "root", "right": "root", "leaf": "left", "lost": "right"}
    assert trace_back(scores, parents) == {"root": 0.9, "left": 0.9, "right": None, "leaf": 0.9, "lost": None}


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=1, max_size=12), st.randoms())
def test_scores_stay_within_those_of_the_tree(scores, rng):
    named = {str(i): score for i, score in enumerate(scores)}
    parents = {str(i): str(rng.randrange(i)) for i in range(1, len(scores)) if rng.random() < 0.7}
    rescored = trace_back(named, parents)
    known = [score for score in scores if score is not None]
    assert all(score is None or min(known) - 1e-12 <= score <= max(known) + 1e-12 for score in rescored.values())
    assert all(rescored[node] == named[node] for node in named if node not in parents.values())


def test_malformed_trees():
    with pytest.raises(ValueError, match=r"nodes \['b'\] stand in parents but have no score"):
        trace_back({"a": 1.0}, {"a": "b"})
    with pytest.raises(ValueError, match=r"nodes \['a', 'b'\] are their own ancestors"):
        trace_back({"a": 1.0, "b": 1.0, "c": 0.0}, {"a": "b", "b": "a"})


def test_pairs_need_a_gap_a_good_one_and_a_bad_one_that_is_not_hopeless():
    scores = {"best": 0.9, "fair": 0.85, "poor": 0.3, "zero": 0.0, "near": 0.5, "lost": None}
    assert set(preference_pairs(scores)) == {("best", "poor"), ("fair", "poor")}


def test_weights_worked_example():
    weights = sample_balanced_weights([0.8], [0.25], mean_probability=0.5, mean_reward=0.5)
    assert weights == [BalancedWeights(policy=1.6, kl=0.5)]
    with pytest.raises(ValueError, match="running means must be above 0"):
        sample_balanced_weights([0.8], [0.25], mean_probability=0.5, mean_reward=0.0)
