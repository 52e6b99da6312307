"""Distribution matching: worked slopes and target, exact gradients over all sequences, loops over members."""

from __future__ import annotations

import math

import pytest
import torch

from learner.losses.distribution import SLOPES, tilted_target_gradient
from tests.learner import fixture_f as F
from tests.learner.test_losses_group import random_columns

REFERENCE, SCORES = F.flat(0.5, 0.3, 0.2), F.flat(0.0, 1.0, 2.0)
LOGITS = F.flat(0.4, -0.3, 0.2)

SLOPES_AT = {
    "kl": (-2.0, -0.5),
    "reverse_kl": (0.306853, 1.693147),
    "js": (-0.405465, 0.287682),
    "tv": (-0.5, 0.5),
    "chi2": (-3.0, 0.75),
    "reverse_chi2": (-1.0, 2.0),
}

DIVERGENCES = {
    "kl": lambda p, t: (p * (p / t).log()).sum(),
    "reverse_kl": lambda p, t: (t * (t / p).log()).sum(),
    "js": lambda p, t: (t * (2 * t / (t + p)).log()).sum() + (p * (2 * p / (t + p)).log()).sum(),
    "tv": lambda p, t: 0.5 * (t - p).abs().sum(),
    "chi2": lambda p, t: (p**2 / t).sum() - 1,
    "reverse_chi2": lambda p, t: (t**2 / p).sum() - 1,
}
"""Of target p and policy t, whose slope stands in SLOPES; "js" counts both halves."""


@pytest.mark.parametrize("name", SLOPES)
def test_worked_slopes(name):
    """f' at t = 0.5 and 2."""
    assert SLOPES[name](F.flat(0.5, 2.0).log()).tolist() == pytest.approx(SLOPES_AT[name], abs=6e-7)


def over_all_sequences(logits, **options):
    """Three sequences of one token, each once in a group that a uniform policy sampled: all there are."""
    three = F.flat(0, 1, 2)
    return tilted_target_gradient(
        logits.log_softmax(0),
        F.flat(*[-math.log(3)] * 3),
        REFERENCE.log(),
        SCORES,
        three,
        torch.zeros_like(three),
        F.flat(*[1 / 3] * 3),
        **options,
    )


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_gradient_is_that_of_the_divergence(name):
    """Reference .5, .3, .2 tilted by scores 0, 1, 2 at beta 1: .179, .291944, .529056, ln Z = 1.027222."""
    tilted = REFERENCE * SCORES.exp()
    target = tilted / tilted.sum()
    assert target.tolist() == pytest.approx([0.179, 0.291944, 0.529056], abs=6e-7)
    assert tilted.sum().log().item() == pytest.approx(1.027222, abs=6e-7)
    logits = LOGITS.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(DIVERGENCES[name](target, logits.softmax(0)), logits)
    output = over_all_sequences(logits, divergence=name)
    (got,) = torch.autograd.grad(output.loss, logits)
    torch.testing.assert_close(got, wanted, atol=1e-10, rtol=0)
    distance = (target * (target / LOGITS.softmax(0)).log()).sum().item()
    assert output.metrics["target_kl_sum"].item() / 3 == pytest.approx(distance, abs=1e-10)


def test_nothing_moves_at_the_target():
    tilted = (REFERENCE * (SCORES / 0.5).exp()).log().requires_grad_()
    for name in DIVERGENCES:
        output = over_all_sequences(tilted, divergence=name, beta=0.5)
        (gradient,) = torch.autograd.grad(output.loss, tilted)
        assert gradient.abs().max().item() < 1e-12 or name == "tv"  # whose slope jumps there
        assert output.metrics["target_kl_sum"].item() == pytest.approx(0.0, abs=1e-12)


def by_loops(columns, beta, max_slope):
    """The distributional policy gradient of each sequence's log-prob, in plain floats."""
    pi = columns["logprobs"].detach().tolist()
    mu, ref = columns["behavior_logprobs"].tolist(), columns["reference_logprobs"].tolist()
    ids, groups = columns["sequence_ids"].tolist(), columns["group_ids"].tolist()
    scores = dict(zip(ids, columns["advantages"].tolist(), strict=True))
    sums = {i: [math.fsum(x[n] for n in range(len(ids)) if ids[n] == i) for x in (pi, mu, ref)] for i in set(ids)}
    group_of = dict(zip(ids, groups, strict=True))
    gradient = {}
    for group in set(groups):
        own = [i for i in sums if group_of[i] == group]
        z = math.fsum(math.exp(sums[i][2] - sums[i][1] + scores[i] / beta) for i in own) / len(own)
        q = {i: math.exp(sums[i][0] - sums[i][1]) for i in own}
        slope = {}
        for i in own:
            target = sums[i][2] + scores[i] / beta - math.log(z)
            slope[i] = max(-max_slope, -math.exp(target - sums[i][0]))
        baseline = math.fsum(q[i] * slope[i] for i in own) / math.fsum(q.values())
        gradient |= {i: q[i] * (slope[i] - baseline) / len(sums) for i in own}
    return F.flat(*(gradient[i] for i in ids))


@pytest.mark.parametrize("sizes", [(2,), (4, 1, 3), (5, 2)])
def test_agrees_with_loops_over_members(sizes):
    columns = random_columns(sizes, seed=len(sizes))
    columns.pop("point")
    loss = tilted_target_gradient(**columns, beta=0.7, divergence="kl", max_slope=5.0).loss
    (gradient,) = torch.autograd.grad(loss, columns["logprobs"])
    torch.testing.assert_close(gradient, by_loops(columns, 0.7, 5.0), atol=1e-10, rtol=1e-10)


def test_unknown_divergences_are_refused():
    with pytest.raises(ValueError, match="divergence='hellinger' is not one of kl"):
        over_all_sequences(LOGITS, divergence="hellinger")
