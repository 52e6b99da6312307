"""Advantages of tokens, and what critics learn: worked numbers, sums written out, and limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from learner.losses.value import (
    categorical_value_loss,
    feature_penalty,
    hl_gauss,
    squared_value_loss,
    support,
    two_hot,
)
from learner.returns import Episode, conservative, episodes, gae, v_trace

REWARDS, VALUES = np.array([0.0, 0, 1]), np.array([0.2, 0.5, 0.7])


def test_worked_gae():
    advantages, targets = gae(Episode(REWARDS, VALUES, np.ones(3)))
    assert advantages == pytest.approx([0.76075, 0.485, 0.3], abs=1e-9)
    assert targets == pytest.approx([0.96075, 0.985, 1.0], abs=1e-9)


def test_worked_v_trace():
    advantages, targets = v_trace(Episode(REWARDS, VALUES, np.array([1.2, 0.818731, 3.0])))
    assert targets == pytest.approx([0.909365, 0.909365, 1.0], abs=1e-6)
    assert advantages == pytest.approx([0.709365, 0.409365, 0.3], abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_returns_are_the_sums_they_stand_for(seed):
    rng = np.random.default_rng(seed)
    n, discount, trace = 6, 0.9, 0.7
    rewards, values, ratios = rng.normal(size=n), rng.normal(size=n), rng.uniform(0.2, 3, n)
    behind = np.append(values[1:], 0.0)
    surprises = rewards + discount * behind - values
    expected = [sum((discount * trace) ** (k - t) * surprises[k] for k in range(t, n)) for t in range(n)]
    assert gae(Episode(rewards, values, ratios), discount=discount, trace=trace)[0] == pytest.approx(expected)
    rho, carry = np.minimum(1.5, ratios), trace * np.minimum(1.0, ratios)
    targets = [
        values[t] + sum(discount ** (k - t) * np.prod(carry[t:k]) * rho[k] * surprises[k] for k in range(t, n))
        for t in range(n)
    ]
    got = v_trace(Episode(rewards, values, ratios), discount=discount, trace=trace, rho_max=1.5)[1]
    assert got == pytest.approx(targets)


def test_on_policy_v_trace_targets_are_those_of_gae():
    episode = Episode(REWARDS, VALUES, np.ones(3))
    assert v_trace(episode, discount=0.9, trace=0.8)[1] == pytest.approx(gae(episode, discount=0.9, trace=0.8)[1])


def test_worked_conservative_targets():
    gaps = np.array([0.0, -0.1, -0.3]), np.array([-0.2, -0.4, 0.0])
    targets = conservative(Episode(REWARDS, VALUES, np.ones(3), *gaps), discount=0.9, scale=0.5)[1]
    assert targets == pytest.approx([0.9 * (0.5 - 0.2), 0.9 * 0.7 + 0.05, 1.0 + 0.15])
    with pytest.raises(ValueError, match="need the gaps"):
        conservative(Episode(REWARDS, VALUES, np.ones(3)))


def test_episodes_pass_over_what_the_policy_did_not_write():
    masks = [np.array([False, True, False, True]), np.array([False, True]), np.array([False, False])]
    values = [np.array([9.0, 1, 9, 2], np.float32), np.array([9.0, 3], np.float32), np.array([9.0, 9], np.float32)]
    first, unscored, empty = episodes(masks, [0.5, None, 1.0], values, None)
    assert first is not None
    assert (first.rewards.tolist(), first.values.tolist()) == ([0.0, 0.5], [1.0, 2.0])
    paid = episodes(masks[:1], [0.5], values[:1], None, [np.array([9.0, -1, 9, -2], np.float32)])[0]
    assert paid is not None
    assert paid.rewards.tolist() == [-1.0, -1.5]
    assert unscored is None
    assert empty is None


def test_worked_value_losses():
    values, targets = torch.tensor([0.2, 0.9]).double(), torch.tensor([1.0, 0]).double()
    scale, old = torch.full((2,), 0.5).double(), torch.full((2,), 0.5).double()
    assert squared_value_loss(values, targets, scale, old_values=old, clip=0.2).item() == pytest.approx(0.3625)
    assert squared_value_loss(values, targets, scale).item() == pytest.approx((0.64 + 0.81) / 4)


def test_worked_distributions():
    target = torch.tensor([0.6]).double()
    coded = hl_gauss(target, low=0.0, high=1.0, bins=4)
    assert coded[0].tolist() == pytest.approx([0.030815, 0.270564, 0.499808, 0.198814], abs=1e-6)
    centres = support(low=0.0, high=1.0, bins=4, ends_included=False, device=torch.device("cpu")).double()
    assert (coded @ centres).item() == pytest.approx(0.591655, abs=1e-6)
    logits = torch.zeros(1, 4).double()
    assert categorical_value_loss(logits, coded, torch.ones(1).double()).item() == pytest.approx(1.386294, abs=1e-6)
    assert two_hot(target, low=0.0, high=1.0, bins=5)[0].tolist() == pytest.approx([0, 0, 0.6, 0.4, 0])


@pytest.mark.parametrize("value", [-3.0, 0.0, 0.25, 1.0, 7.0])
def test_distributions_sum_to_one_and_keep_to_their_range(value):
    target = torch.tensor([value]).double()
    for coded in (hl_gauss(target, low=0.0, high=1.0, bins=8), two_hot(target, low=0.0, high=1.0, bins=8)):
        assert coded.sum().item() == pytest.approx(1.0)
        assert (coded >= 0).all()
    points = support(low=0.0, high=1.0, bins=8, ends_included=True, device=torch.device("cpu")).double()
    assert (two_hot(target, low=0.0, high=1.0, bins=8) @ points).item() == pytest.approx(min(max(value, 0.0), 1.0))


def test_worked_feature_penalty():
    phi = torch.tensor([[1.0, 2.0]], requires_grad=True)
    following = torch.tensor([[1.0, 2.2]], requires_grad=True)
    arguments = torch.tensor([3.0]), torch.tensor(4.0), torch.tensor([1e-3])
    loss = feature_penalty(phi, following, *arguments, discount=0.99)
    assert loss.item() == pytest.approx(2.07e-4, abs=5e-7)
    loss.backward()
    assert phi.grad is not None
    assert phi.grad.abs().sum() > 0
    assert following.grad is None
