import pytest

from rewards.shaping import (
    flow_token_rewards,
    intrinsic_reward,
    judgement_rewards,
    regularised_relevance,
    renorm,
    scaled_advantage_factor,
)


def test_renorm_follows_the_outcome():
    found = [renorm(p, o) for p, o in ((0.8, 1), (0.8, 0), (0.3, 1), (0.3, 0))]
    assert found == pytest.approx([0.8, -0.2, 0.3, -0.7])


def test_judgements_of_searches():
    right = [(True, 0.9), (True, 0.1), (False, 0.7), (False, 0.2)]
    assert 1 + judgement_rewards(True, right) == pytest.approx(1.17)
    assert judgement_rewards(False, [(True, 0.9), (True, 0.1)]) == pytest.approx(-0.075)
    assert judgement_rewards(True, [(True, 1.0)] * 50) == 0.3  # judging without end does not pay


def test_relevance_is_not_earned_by_copying_or_by_length():
    words = " ".join(f"w{i}" for i in range(120))
    assert regularised_relevance(1.5, words, "a question") == pytest.approx(1.5 * 1.2)
    assert regularised_relevance(1.5, words, words) == 0.0
    assert regularised_relevance(1.0, " ".join(f"w{i}" for i in range(900)), "q") == 2.0
    assert regularised_relevance(1.0, "a b c " * 40, "q") < 0.05


def test_scaled_advantages_worked_example_and_bounds():
    assert scaled_advantage_factor(0.6, 0.5, 0.4, 0.2) == pytest.approx(1.0473, abs=1e-4)
    assert scaled_advantage_factor(-100.0, -5.0, 0.0, 0.0) == 2.0


def test_flow_worked_example():
    assert flow_token_rewards([2, 5, 3, 1, 4]) == pytest.approx([0, -0.01, 0, 0, -0.0075])
    assert flow_token_rewards([2, 2]) == [0.0, 0.0]
    assert flow_token_rewards([]) == []


def test_praise_wears_off():
    assert intrinsic_reward(1.0, 3) == pytest.approx(0.1333, abs=1e-4)
    with pytest.raises(ValueError, match="at least 1"):
        intrinsic_reward(1.0, 0)
