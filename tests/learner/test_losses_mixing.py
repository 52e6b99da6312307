"""Imitation and reinforcement in one objective: worked numbers, each new function against its formula, statistics."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from learner import statistics
from learner.advantages import ADVANTAGES, ScoredBatch
from learner.config import EntropyWeightedLikelihood, EntropyWeightedPolicyGradient, OneTokenRollout, Term
from learner.losses.expert import shaped_likelihood
from learner.losses.imitation import negative_log_likelihood
from learner.losses.mixing import entropy_weighted_likelihood, entropy_weighted_policy_gradient, one_token_rollout
from learner.losses.regularizers import kl_to_reference
from learner.statistics import UpdateTokens
from tests.learner import fixture_f as F
from tests.learner.rank_process import CONFIG, batch, make_trainer

ENTROPY = F.flat(*[0.9] * 5)
ONE = F.flat(1.0)


def test_weights_that_follow_the_entropy():
    """H = 0.9: imitation weighs 0.203285, a success 0.24596, a failure 1."""
    pi = F.policy()
    imitation = entropy_weighted_likelihood(pi, ENTROPY, F.FIRST)
    own = entropy_weighted_policy_gradient(pi, F.ADVANTAGES, ENTROPY, F.TOKEN)
    (imitation.loss + own.loss).backward()
    expected = F.flat(*[-0.203285 / 3 - 0.24596 / 5] * 3, *[1 / 5] * 2)
    torch.testing.assert_close(pi.grad, expected, atol=8e-7, rtol=0)
    assert imitation.metrics["token_weight_sum"].item() == pytest.approx(3 * 0.203285, abs=2e-6)
    assert own.metrics["token_weight_sum"].item() == pytest.approx(3 * 0.24596 + 2, abs=2e-6)


def test_srft_on_the_fixture():
    """Sequence 1 as demonstration, sequence 2 as own failure, H = 0.9: three terms, computed by hand."""
    pi = F.policy()
    loss = (
        entropy_weighted_likelihood(pi, ENTROPY, F.FIRST).loss
        + shaped_likelihood(pi, F.ADVANTAGES, F.FIRST, shaping=None).loss
        + entropy_weighted_policy_gradient(pi, F.ADVANTAGES, ENTROPY, F.SECOND).loss
    )
    loss.backward()
    weight = 0.5 * math.exp(-0.9)
    p = [math.exp(x) for x in (-0.4, -1.2, -1.5)]
    assert loss.item() == pytest.approx(weight * 3.1 / 3 - sum(p) / 3 + (-0.5 - 1.1) / 2, abs=1e-10)
    gradient = F.flat(*(-(weight + x) / 3 for x in p), 0.5, 0.5)
    torch.testing.assert_close(pi.grad, gradient, atol=1e-10, rtol=0)


def test_one_hit_and_one_miss_of_two_draws():
    """P = 0.3, a miss earns nothing: 0.601986."""
    value = one_token_rollout(ONE * math.log(0.3), ONE * 0.5, ONE, miss_reward=0.0).loss
    assert value.item() == pytest.approx(0.601986, abs=6e-7)


def test_a_power_of_the_probability():
    """P = 0.25 under reward 1 / P is cross-entropy; exponent -0.25 counts the token sqrt(2) times."""
    pi = ONE * math.log(0.25)
    for exponent, weight in ((0.0, 1.0), (-0.25, math.sqrt(2.0)), (1.0, 0.25)):
        loss = negative_log_likelihood(pi, ONE, token_weight="power", exponent=exponent).loss
        assert loss.item() == pytest.approx(weight * math.log(4.0), abs=1e-12)


def test_demonstration_regularised_objective():
    """E[R] = 0.8 at KL 0.12 and lambda 0.1: 0.788; k1 of the fixture is such a KL."""
    kl = kl_to_reference(F.PI, F.REF, F.TOKEN, estimator="k1").loss
    assert kl.item() == pytest.approx(0.12, abs=1e-9)
    assert 0.8 - 0.1 * kl.item() == pytest.approx(0.788, abs=1e-9)


FORMULAS = {
    "entropy-weighted likelihood": (
        lambda c: entropy_weighted_likelihood(c["pi"], c["h"], c["scale"], factor=0.7),
        lambda t: (-0.7 * math.exp(-t["h"]) * t["pi"], -0.7 * math.exp(-t["h"])),
    ),
    "entropy-weighted score": (
        lambda c: entropy_weighted_policy_gradient(c["pi"], c["a"], c["h"], c["scale"], factor=0.2),
        lambda t: (
            -(0.2 * math.exp(t["h"]) if t["a"] > 0 else 1.0) * t["a"] * t["pi"],
            -(0.2 * math.exp(t["h"]) if t["a"] > 0 else 1.0) * t["a"],
        ),
    ),
    "one-token rollout": (
        lambda c: one_token_rollout(c["pi"], c["hits"], c["scale"], miss_reward=-0.3),
        lambda t: (
            -t["hits"] * t["pi"] + 0.3 * (1 - t["hits"]) * math.log(1 - math.exp(t["pi"])),
            -t["hits"] - 0.3 * (1 - t["hits"]) * math.exp(t["pi"]) / (1 - math.exp(t["pi"])),
        ),
    ),
    "power of the probability": (
        lambda c: negative_log_likelihood(c["pi"], c["scale"], token_weight="power", exponent=-0.25),
        lambda t: (-math.exp(-0.25 * t["pi"]) * t["pi"], -math.exp(-0.25 * t["pi"])),
    ),
    "expert's probability without shaping": (
        lambda c: shaped_likelihood(c["pi"], c["a"], c["scale"], shaping=None),
        lambda t: (-t["a"] * math.exp(t["pi"]),) * 2,
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_agrees_with_the_formula(name):
    function, formula = FORMULAS[name]
    rng = random.Random(5)
    tokens = [
        {
            "pi": rng.uniform(-3, -0.01),
            "a": rng.choice([-1.0, 0.7]),
            "h": 1.3,
            "hits": rng.choice([0.0, 0.25, 1.0]),
            "scale": rng.choice([0.0, 0.02, 0.1]),
        }
        for _ in range(60)
    ]
    columns = {key: F.flat(*(token[key] for token in tokens)) for key in tokens[0]}
    columns["pi"].requires_grad_()
    for column in columns.values():  # what is left out may hold anything
        column.data[columns["scale"] == 0] = float("nan") if column is not columns["scale"] else 0.0
    loss = function(columns).loss
    loss.backward()
    expected = [formula(token) for token in tokens]
    value = math.fsum(t["scale"] * v for t, (v, _) in zip(tokens, expected, strict=True))
    gradient = F.flat(*(t["scale"] * g for t, (_, g) in zip(tokens, expected, strict=True)))
    assert loss.item() == pytest.approx(value, abs=1e-10)
    torch.testing.assert_close(columns["pi"].grad, gradient, atol=1e-10, rtol=0)


def test_drawing_tokens_and_their_expectation_have_the_same_gradient():
    """Over a vocabulary of four, all draws enumerated: sum of p(a) R(a) grad log p(a) = the loss's at its mean hits."""
    logits = torch.tensor([0.3, -0.2, 1.0, 0.1], dtype=torch.float64, requires_grad=True)
    logprobs = logits.log_softmax(0)
    rewards = F.flat(1.0, -0.3, -0.3, -0.3)
    wanted = torch.autograd.grad(-(logprobs.exp().detach() * rewards * logprobs).sum(), logits, retain_graph=True)[0]
    hits = logprobs[:1].exp().detach()
    got = torch.autograd.grad(one_token_rollout(logprobs[:1], hits, ONE, miss_reward=-0.3).loss, logits)[0]
    torch.testing.assert_close(got, wanted, atol=1e-12, rtol=0)


def test_a_certain_token_never_misses():
    pi = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    loss = one_token_rollout(pi, ONE, ONE, miss_reward=-0.1).loss
    loss.backward()
    assert (loss.item(), pi.grad.item()) == (0.0, -1.0)


def _tokens(logprobs, entropy) -> UpdateTokens:
    zeros = np.zeros(len(logprobs))
    measures = {"entropy": np.asarray(entropy)}
    return UpdateTokens(np.asarray(logprobs), zeros, zeros, zeros.astype(int), zeros.astype(int), measures)


def test_statistics():
    assert statistics.mean_entropy(_tokens([-1.0] * 4, [0, 1, 2, 3]), 0)["mean_entropy"].tolist() == [1.5] * 4
    many = _tokens(np.log(np.repeat([1.0, 0.3, 1e-9], 2000)), np.zeros(6000))
    hits = statistics.token_hits(many, 3, draws=4)["hits"].reshape(3, 2000)
    assert hits[0].tolist() == [1.0] * 2000
    assert hits[1].mean() == pytest.approx(0.3, abs=0.02)
    assert set(hits[1]) == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert not hits[2].any()
    np.testing.assert_array_equal(statistics.token_hits(many, 3, draws=4)["hits"], hits.ravel())
    assert (statistics.token_hits(many, 4, draws=4)["hits"] != hits.ravel()).any()


def test_the_learner_measures_the_entropy_and_draws_the_hits(tiny_folder):
    terms = [
        Term(loss=EntropyWeightedLikelihood(), source="expert"),
        Term(loss=EntropyWeightedPolicyGradient(), advantage="sign_weighted"),
        Term(loss=OneTokenRollout(draws=2, miss_reward=-0.1), source="expert", weight=0.1),
    ]
    report = make_trainer(tiny_folder, CONFIG, terms).step(batch(0), 0)
    assert not report.skipped
    imitation = report.terms["expert/entropy_weighted_likelihood"]
    assert imitation["loss"] == pytest.approx(imitation["token_weight_mean"] * imitation["nll_mean"], rel=1e-5)
    assert 0 < -math.log(imitation["token_weight_mean"] / 0.5) < math.log(1000)  # a mean entropy, in nats
    assert 0 <= report.terms["expert/one_token_rollout"]["token_weight_mean"] < 0.5


# -------------------------------------------------------------------------------------------------------- advantages


def _scored(scores, lengths, fresh=None, groups=None) -> ScoredBatch:
    n = len(scores)
    return ScoredBatch(
        scores=np.array(scores, dtype=np.float64),
        compared=np.ones(n, bool),
        groups=np.zeros(n, np.int64) if groups is None else np.array(groups),
        lengths=np.array(lengths),
        fresh=np.ones(n, bool) if fresh is None else np.array(fresh),
    )


def test_a_label_teaches_while_nobody_is_as_good():
    """ViSurf: [1 (label), 0, 0, 0] gives 1.499997 and -0.499999; with an own success the label gets 0."""
    fresh = [False, True, True, True]
    advantage = ADVANTAGES["label_smoothed"]
    np.testing.assert_array_equal(
        advantage(_scored([1, 0, 0, 0], [1] * 4, fresh)).round(6), [1.499997] + [-0.499999] * 3
    )
    reached = advantage(_scored([1, 1, 0, 0], [1] * 4, fresh))
    assert reached[0] == pytest.approx(0.0, abs=1e-12)
    mean, deviation = 1 / 3, math.sqrt(((2 / 3) ** 2 + 2 * (1 / 3) ** 2) / 3)
    np.testing.assert_allclose(reached[1:], [(s - mean) / (deviation + 1e-6) for s in (1, 0, 0)], atol=1e-10)
    assert not advantage(_scored([1, 1, 1, 1], [1] * 4, fresh)).any()


def test_of_the_right_answers_the_shortest_stays():
    """SOPHIA: outcomes 1, 1, 0, 1 of lengths 120, 90, -, 150 and a share of 0.75: the answer of 90 tokens stays."""
    advantage = ADVANTAGES["shortest_right"]
    example = _scored([1, 1, 0, 1], [120, 90, 60, 150])
    for min_rate, stays in ((0.0, True), (0.7, True), (0.75, False)):
        expected = [np.nan, 1.0 if stays else np.nan, np.nan, np.nan]
        np.testing.assert_array_equal(advantage(example, min_rate=min_rate), expected)
    two = _scored([1, 1, 0, 0], [5, 5, 3, 3], groups=[0, 0, 1, 1])
    np.testing.assert_array_equal(advantage(two), [1.0, np.nan, np.nan, np.nan])
