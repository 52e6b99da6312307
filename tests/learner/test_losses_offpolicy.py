"""Losses on samples of older policies, advantages that need a greedy answer or ranks: worked numbers and formulas."""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch

from learner.advantages import ADVANTAGES, ScoredBatch
from learner.config import Correction, PolicyGradient, Schedule, Term
from learner.corrections import correction_weights
from learner.losses.offpolicy import behavior_kl, log_ratio_regression, trace_weighted_policy_gradient
from learner.losses.score import divergence_masked_policy_gradient
from learner.losses.surrogate import clipped_surrogate, ratio_surrogate
from learner.objective import Objective
from learner.ratios import suffix_sums
from rewards.trajectory import SamplingRecord
from tests.builders import make_group
from tests.learner import fixture_f as F

A = F.ADVANTAGES
IDS = F.flat(0, 0, 0, 1, 1)

# method: (loss of the policy's log-probs, value, gradient); printed to six decimals
WORKED = {
    "stable-reinforce": (
        lambda pi: clipped_surrogate(pi, F.PROX, A, F.SEQUENCE, dual_clip=1000.0).loss,
        0.029172,
        [0, -0.12347, 0, 0.215177, 0.337465],
    ),
    "decoupled ppo": (
        lambda pi: clipped_surrogate(pi, F.PROX, A, F.TOKEN * _correction(transform="identity")).loss,
        -0.211933,
        [0, -0.163746, 0, 0.163746, 0.298365],
    ),
    "v-trace, value of the group": (
        lambda pi: trace_weighted_policy_gradient(pi, F.MU, A, IDS, F.TOKEN).loss,
        (0.818731 * 0.4 + 0.818731 * 1.2 + 1.5 - 0.818731 * 0.5 - 1.1) / 5,
        [-0.163746, -0.163746, -0.2, 0.163746, 0.2],
    ),
    "dppo, kl": (
        lambda pi: (
            divergence_masked_policy_gradient(pi, F.MU, A, F.TOKEN, divergence="kl", max_rise=0.012, max_fall=0.03).loss
        ),
        None,
        [-0.221034, -0.163746, 0, 0, 0.298365],
    ),
}


def _correction(**fields):
    return correction_weights(
        Correction(**fields),
        logprobs=F.PI,
        proximal_logprobs=F.PROX,
        behavior_logprobs=F.MU,
        sequence_ids=IDS,
        mask=torch.ones(5, dtype=torch.bool),
    )


@pytest.mark.parametrize("name", WORKED)
def test_worked_numbers(name):
    function, value, gradient = WORKED[name]
    pi = F.policy()
    loss = function(pi)
    loss.backward()
    if value is not None:
        assert loss.item() == pytest.approx(value, abs=1e-6)
    torch.testing.assert_close(pi.grad, F.flat(*gradient), atol=8e-7, rtol=0)


def test_mdpo_over_three_actions():
    """Logits 1, 0, -1 against .8, .1, -.9: surrogate .247663, KL .010325, objective at t = .5 .227013."""
    new = F.flat(1, 0, -1).log_softmax(0)
    old = F.flat(0.8, 0.1, -0.9).log_softmax(0)
    surrogate = -ratio_surrogate(new, old, F.flat(0.5, -0.2, -0.4), old.exp()).loss.item()
    kl = behavior_kl(new, old, old.exp()).loss.item()
    assert surrogate == pytest.approx(0.247663, abs=6e-7)
    assert kl == pytest.approx(0.010325, abs=6e-7)
    assert surrogate - kl / 0.5 == pytest.approx(0.227013, abs=6e-7)


def test_behavior_kl_is_the_divergence_and_its_gradient_over_all_actions():
    logits = torch.tensor([0.3, -0.7, 1.1, 0.0], dtype=torch.float64, requires_grad=True)
    old = F.flat(0.1, 0.2, 0.5, -1.0).log_softmax(0)
    new = logits.log_softmax(0)
    estimate = behavior_kl(new, old, old.exp()).loss
    exact = (new.exp() * (new - old)).sum()
    assert estimate.item() == pytest.approx(exact.item(), abs=1e-12)
    got, wanted = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (estimate, exact))
    torch.testing.assert_close(got, wanted, atol=1e-12, rtol=0)


def test_rover_on_two_tokens():
    """Three tokens in the vocabulary: Q = .110753, -.135227, targets .498106 (with the successor's value) and .5."""
    new = torch.tensor([[1, 0, -1], [0.5, 0.5, 0]], dtype=torch.float64).log_softmax(1)
    old = torch.tensor([[0.8, 0.1, -0.9], [0.2, 0.6, 0.1]], dtype=torch.float64).log_softmax(1)
    successor = (new - old).mean(1)[1].item()
    target = F.flat(0.5 + successor, 0.5)
    assert target[0].item() == pytest.approx(0.498106, abs=6e-7)
    taken = torch.stack([new[0, 0], new[1, 1]]).requires_grad_()
    loss = log_ratio_regression(taken, torch.stack([old[0, 0], old[1, 1]]), target, F.flat(0.5, 0.5)).loss
    loss.backward()
    assert loss.item() == pytest.approx(0.276778, abs=6e-7)
    torch.testing.assert_close(taken.grad, F.flat(0.110753 - 0.498106, -0.135227 - 0.5), atol=2e-6, rtol=0)


# ---------------------------------------------------------------------------------------------- independent formulas


def _vtrace_by_recursion(q, reward, value):
    """rho_t (vs_{t+1} - V) of one sequence with the constant value V, a reward at its end and no discount."""
    advantages, vs_next = [0.0] * len(q), reward
    for t in reversed(range(len(q))):
        rho = min(1.0, q[t])
        advantages[t] = rho * (vs_next - value)
        after = reward if t == len(q) - 1 else value
        vs_next = value + rho * (after - value) + (0.0 if t == len(q) - 1 else rho * (vs_next - value))
    return advantages


def _sequences(seed):
    rng = random.Random(seed)
    return [
        [
            {"pi": rng.uniform(-2, -0.01), "mu": rng.uniform(-2, -0.01), "a": a, "ids": float(i), "scale": scale}
            for _ in range(rng.randint(1, 6))
        ]
        for i, (a, scale) in enumerate((rng.choice([-0.4, 0.6]), rng.choice([0.0, 0.03, 0.1])) for _ in range(12))
    ]


def _columns(sequences):
    tokens = [t for s in sequences for t in s]
    columns = {key: F.flat(*(t[key] for t in tokens)) for key in tokens[0]}
    left_out = columns["scale"] == 0
    for key in ("pi", "mu", "a"):
        columns[key][left_out] = math.nan
    columns["pi"].requires_grad_()
    return tokens, columns


def _trace(tokens):
    weights = _vtrace_by_recursion([math.exp(t["pi"] - t["mu"]) for t in tokens], tokens[0]["a"] + 0.3, 0.3)
    return [(-w * t["pi"], -w) for w, t in zip(weights, tokens, strict=True)]


def _kl_masked(t):
    p, m = math.exp(t["pi"]), math.exp(t["mu"])
    kl = m * math.log(m / p) + (1 - m) * math.log((1 - m) / (1 - p))
    away = p > m if t["a"] > 0 else p < m
    w = min(p / m, 20.0) * t["a"]
    return (0.0, 0.0) if away and kl > 0.05 else (-w * t["pi"], -w)


def _regression(t):
    q = 0.7 * (t["pi"] - t["mu"]) - t["a"]
    return q * q, 1.4 * q


def _kl(t):
    d = t["pi"] - t["mu"]
    return 1 - math.exp(d) + math.exp(d) * d, math.exp(d) * d


FORMULAS = {
    "trace": (lambda c: trace_weighted_policy_gradient(c["pi"], c["mu"], c["a"], c["ids"], c["scale"]), _trace),
    "kl mask": (
        lambda c: divergence_masked_policy_gradient(
            c["pi"], c["mu"], c["a"], c["scale"], divergence="kl", max_rise=0.05, max_fall=0.05
        ),
        lambda tokens: [_kl_masked(t) for t in tokens],
    ),
    "log-ratio regression": (
        lambda c: log_ratio_regression(c["pi"], c["mu"], c["a"], c["scale"], temperature=0.7),
        lambda tokens: [_regression(t) for t in tokens],
    ),
    "behaviour kl": (
        lambda c: behavior_kl(c["pi"], c["mu"], c["scale"]),
        lambda tokens: [_kl(t) for t in tokens],
    ),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", FORMULAS)
def test_agrees_with_the_formula(name, seed):
    function, formula = FORMULAS[name]
    sequences = _sequences(seed)
    tokens, columns = _columns(sequences)
    loss = function(columns).loss
    loss.backward()
    expected = [pair for sequence in sequences for pair in formula(sequence)]
    value = math.fsum(t["scale"] * v for t, (v, _) in zip(tokens, expected, strict=True))
    gradient = F.flat(*(t["scale"] * g for t, (_, g) in zip(tokens, expected, strict=True)))
    assert loss.item() == pytest.approx(value, abs=1e-10)
    torch.testing.assert_close(columns["pi"].grad, gradient, atol=1e-10, rtol=0)


def test_suffix_sums_of_sequences_that_lie_between_each_other():
    values, mask = F.flat(1, 10, 2, 100, 20, 4), torch.tensor([True, True, True, False, True, True])
    got = suffix_sums(values, F.flat(5, 3, 5, 5, 3, 5), mask)
    assert got.tolist() == [7, 30, 6, 0, 20, 4]


def test_a_certain_token_has_a_finite_divergence():
    pi = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    loss = divergence_masked_policy_gradient(pi, F.flat(-1.0), F.flat(1.0), F.flat(1.0), divergence="kl").loss
    loss.backward()
    assert (loss.item(), pi.grad.item()) == (0.0, 0.0)  # far away, so left out
    with pytest.raises(ValueError, match="not one of tv, kl"):
        divergence_masked_policy_gradient(pi, F.flat(-1.0), F.flat(1.0), F.flat(1.0), divergence="js")


# ---------------------------------------------------------------------------------------------- advantages, schedules


def _batch(scores, **fields) -> ScoredBatch:
    n = len(scores)
    values = {"compared": np.ones(n, bool), "groups": np.zeros(n, np.int64), "lengths": np.ones(n, np.int64)}
    return ScoredBatch(scores=np.array(scores, dtype=np.float64), **(values | fields))


def test_remax():
    """Scores .9, .5, .1 over a greedy answer of .6: .3, -.1, -.5."""
    greedy = np.array([False, False, False, True])
    batch = _batch([0.9, 0.5, 0.1, 0.6], greedy=greedy, compared=~greedy)
    np.testing.assert_allclose(ADVANTAGES["over_greedy"](batch)[:3], [0.3, -0.1, -0.5], atol=1e-12)
    assert np.isnan(ADVANTAGES["over_greedy"](_batch([1.0, 0.0]))).all()


def test_a_greedy_answer_is_a_baseline_and_no_sample():
    group = make_group(group_id="g", scores=(1.0, 0.0, 1.0), answers=[(7, 8), (7, 9), (8, 8)])
    *own, last = group.trajectories
    with_greedy = replace(group, trajectories=(*own, replace(last, sampling=SamplingRecord(temperature=0.0))))
    for advantage, expected in (("over_greedy", [0.0, -1.0]), ("centered", [0.5, -0.5])):
        plan = Objective([Term(loss=PolicyGradient(), advantage=advantage)]).plan([with_greedy]).terms[0]
        assert plan.num_sequences == 2
        assert plan.advantages is not None
        assert [float(a[m][0]) for a, m in zip(plan.advantages[:2], plan.mask[:2], strict=True)] == expected
        assert not plan.mask[2].any()


def test_rere():
    """Penalties of four ranks: .39038, .246302, .19519, .168128; none in a group without a right answer."""
    shares = [0.39038, 0.246302, 0.19519, 0.168128]
    advantage = ADVANTAGES["rank_penalised"]
    for likelihoods, ranks in ((None, [0, 1, 2, 3]), ([-9.0, -1.0, -3.0, -2.0], [3, 0, 2, 1])):
        batch = _batch([0, 0, 1, 0], loglikelihoods=None if likelihoods is None else np.array(likelihoods))
        penalised = [1.0 if i == 2 else -shares[rank] for i, rank in enumerate(ranks)]
        mean, deviation = statistics.fmean(penalised), statistics.stdev(penalised)
        expected = [(s - mean) / (deviation + 1e-4) for s in penalised]
        np.testing.assert_allclose(advantage(batch), expected, atol=3e-6)
    assert not advantage(_batch([0, 0, 0])).any()


def test_likelihoods_rank_the_answers_of_a_batch():
    group = make_group(group_id="g", scores=(0.0, 0.0, 1.0), answers=[(7, 8), (7, 9), (8, 8)])
    members = [
        replace(t, behavior_logprobs=np.full_like(t.behavior_logprobs, x))
        for t, x in zip(group.trajectories, (-3.0, -1.0, -2.0), strict=True)
    ]
    term = Term(loss=PolicyGradient(), advantage="rank_penalised")
    plan = Objective([term]).plan([replace(group, trajectories=tuple(members))]).terms[0]
    assert plan.advantages is not None
    unlikely, likely, right = (
        float(a.sum() / max(1, m.sum())) for a, m in zip(plan.advantages, plan.mask, strict=True)
    )
    assert likely < unlikely < right


def test_schedules_in_stairs_and_inverse():
    remix = Schedule(kind="stairs", start=1.0, end=0.5, steps=50, hold=50, stair=10)
    assert [remix.at(t) for t in (0, 50, 60, 75, 100, 150)] == pytest.approx([1, 1, 0.9, 0.7, 0.5, 0.5])
    mdpo = Schedule(kind="inverse", start=1.0, end=0.05, steps=19)
    assert [mdpo.at(t) for t in (0, 10, 19, 30)] == pytest.approx([1, 2, 20, 20])
    assert Schedule(kind="linear", start=0.0, end=1.0, steps=10, hold=5, warmup=5).at(15) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="must lie above 0"):
        Schedule(kind="inverse", start=1.0, end=0.0, steps=5)
