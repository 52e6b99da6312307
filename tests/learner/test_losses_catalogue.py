"""Published objectives as compositions: worked numbers on the fixture, and each new loss against its own formula."""

from __future__ import annotations

import math
import random

import pytest
import torch

from learner.losses.expert import mixture_ratio, shaped_likelihood, shaped_ratio
from learner.losses.regularizers import ratio_variance, rehearsal_divergence, squared_log_ratio
from learner.losses.score import divergence_masked_policy_gradient, policy_gradient, weighted_policy_gradient
from learner.losses.sequence import geometric_mean_surrogate, sequence_surrogate
from learner.losses.surrogate import (
    inverse_ratio_surrogate,
    ratio_surrogate,
    recentred_surrogate,
    soft_gate_surrogate,
)
from tests.learner import fixture_f as F

A = F.ADVANTAGES
IDS = F.flat(0, 0, 0, 1, 1)
PER_SEQUENCE = F.flat(*[1 / 2] * 5)
"""Scales of the mean over sequences of token sums."""
OF_WIDTH_1 = F.flat(*[1 / 3] * 3, 0, 0)
OF_WIDTH_2 = F.flat(0, 0, 0, *[1 / 3] * 2)
"""Scales of the sum over tokens by the padded width of 3, sequence 1 and 2."""


def on_own(pi):
    return ratio_surrogate(pi, F.PROX, A, OF_WIDTH_2).loss


# method: (loss of the policy's log-probs, value, gradient or None); printed to six decimals
WORKED = {
    "reinforce": (lambda pi: policy_gradient(pi, A, F.TOKEN).loss, 0.3, [-0.2, -0.2, -0.2, 0.2, 0.2]),
    "gspo": (
        lambda pi: sequence_surrogate(pi, F.PROX, A, IDS, F.SEQUENCE).loss,
        0.038742,
        [0, 0, 0, 0.269471, 0.269471],
    ),
    "gspo, wide": (
        lambda pi: sequence_surrogate(pi, F.PROX, A, IDS, F.SEQUENCE, clip_low=0.2, clip_high=0.2).loss,
        0.004473,
        [-0.178157, -0.178157, -0.178157, 0.269471, 0.269471],
    ),
    "gmpo": (lambda pi: geometric_mean_surrogate(pi, F.PROX, A, IDS, F.SEQUENCE).loss, 0.004473, None),
    "cispo": (
        lambda pi: weighted_policy_gradient(pi, F.PROX, A, IDS, F.TOKEN, ratio_min=0.8, ratio_max=1.28).loss,
        0.306041,
        [-0.244281, -0.16, -0.256, 0.172142, 0.256],
    ),
    "sapo": (
        lambda pi: soft_gate_surrogate(pi, F.PROX, A, F.SEQUENCE).loss,
        -0.047402,
        [-0.201093, -0.121419, -0.21823, 0.21403, 0.326331],
    ),
    "dro": (
        lambda pi: policy_gradient(pi, A, F.TOKEN).loss + 0.1 * squared_log_ratio(pi, F.PROX, IDS, F.TOKEN).loss,
        0.303325,
        [-0.196, -0.206, -0.194, 0.197, 0.206],
    ),
    "kimi, sequences": (
        lambda pi: (
            policy_gradient(pi, A / 2, PER_SEQUENCE).loss
            + 0.1 * squared_log_ratio(pi, F.PROX, IDS, PER_SEQUENCE, level="product").loss
        ),
        0.376563,
        [-0.24, -0.24, -0.24, 0.2575, 0.2575],
    ),
    "topr, tokens": (
        lambda pi: weighted_policy_gradient(pi, F.MU, A, IDS, F.TOKEN, ratio_max=1.0, positive_unweighted=True).loss,
        0.318127,
        [-0.2, -0.2, -0.2, 0.163746, 0.2],
    ),
    "topr, sequences": (
        lambda pi: (
            weighted_policy_gradient(
                pi, F.MU, A, IDS, PER_SEQUENCE, ratio_max=1.0, positive_unweighted=True, level="product"
            ).loss
        ),
        0.75,
        None,
    ),
    "dppo": (
        lambda pi: divergence_masked_policy_gradient(pi, F.MU, A, F.TOKEN, max_rise=0.05, max_fall=0.05).loss,
        -0.131706,
        [0, -0.163746, 0, 0, 0.298365],
    ),
    "aspo": (
        lambda pi: inverse_ratio_surrogate(pi, F.PROX, A, F.TOKEN).loss,
        (-math.exp(-0.2) - math.exp(0.3) + math.exp(-0.15) + math.exp(0.3)) / 5,
        [-0.163746, -0.269972, 0, 0.172142, 0.269972],
    ),
    "r2vpo": (
        lambda pi: ratio_surrogate(pi, F.PROX, A, F.TOKEN).loss + 0.04 * ratio_variance(pi, F.PROX, F.TOKEN).loss,
        -0.217259,
        [-0.239954, -0.151236, -0.262416, 0.170223, 0.277528],
    ),
    "remix": (
        lambda pi: recentred_surrogate(pi, F.MU, F.PROX, A, F.TOKEN).loss,
        -0.206883,
        [0, -0.163746, 0, 0.163746, 0.298365],
    ),
    "luffy": (
        lambda pi: shaped_likelihood(pi, A, OF_WIDTH_1).loss + on_own(pi),
        -0.033629,
        [-0.037655, -0.062376, -0.071233, 0.286903, 0.449953],
    ),
    "exgrpo": (
        lambda pi: shaped_ratio(pi, F.MU, A, OF_WIDTH_1).loss + on_own(pi),
        -0.180142,
        [-0.025364, -0.032333, -0.017972, 0.286903, 0.449953],
    ),
    "rl-plus": (
        lambda pi: mixture_ratio(pi, F.PROX, A, OF_WIDTH_1).loss + on_own(pi),
        0.216408,
        [-0.193913, -0.15124, -0.175295, 0.286903, 0.449953],
    ),
    "dph-rl, forward": (
        lambda pi: rehearsal_divergence(pi, F.MU, F.TOKEN).loss,
        0.056636,
        [0.021034, -0.036254, 0.129744, -0.036254, 0.098365],
    ),
    "dph-rl, js": (lambda pi: rehearsal_divergence(pi, F.MU, F.TOKEN, generator="js").loss, 0.029968, None),
    "dph-rl, alpha": (lambda pi: rehearsal_divergence(pi, F.MU, F.TOKEN, generator="alpha").loss, 0.06252, None),
}


@pytest.mark.parametrize("name", WORKED)
def test_worked_numbers(name):
    function, value, gradient = WORKED[name]
    pi = F.policy()
    loss = function(pi)
    assert loss.item() == pytest.approx(value, abs=6e-7)
    if gradient is not None:
        loss.backward()
        torch.testing.assert_close(pi.grad, F.flat(*gradient), atol=8e-7, rtol=0)


# ------------------------------------------------- independent formulas in plain floats: value and gradient per token
# Each takes the tokens of one sequence and gives (value, d value / d pi) of every token under equal scales w, so that a
# sequence's loss is w * sum of values.


def _sign(x):
    return (x > 0) - (x < 0)


def _per_token(formula):
    return lambda tokens: [formula(t) for t in tokens]


def _soft_gate(t):
    r, tau = math.exp(t["pi"] - t["mu"]), 1.0 if t["a"] > 0 else 1.05
    s = 1 / (1 + math.exp(-tau * (r - 1)))
    return -4 / tau * s * t["a"], -4 * s * (1 - s) * r * t["a"]


def _inverse(t):
    r, a = math.exp(t["pi"] - t["mu"]), t["a"]
    if a > 0:
        w = min(1 / r, 3.0)
        return (0.0, 0.0) if r > 1.28 else (-a * w, -a * w)
    if r < 0.8:
        return 0.0, 0.0
    return (-a * 3.0, 0.0) if r > 3.0 else (-a * r, -a * r)


def _recentred(t):
    q, c, a = math.exp(t["pi"] - t["mu"]), math.exp(t["prox"] - t["mu"]), t["a"]
    bounded = max(c - 0.2, min(c + 0.2, q))
    return (-a * q, -a * q) if a * q <= a * bounded else (-a * bounded, 0.0)


def _masked(t):
    rise = math.exp(t["pi"]) - math.exp(t["mu"])
    w = min(math.exp(t["pi"] - t["mu"]), 20.0) * t["a"]
    keep = rise <= 0.2 if t["a"] > 0 else rise >= -0.2
    return (-w * t["pi"], -w) if keep else (0.0, 0.0)


def _clipped_weight(t):
    w = max(0.5, min(1.5, math.exp(t["pi"] - t["mu"]))) * t["a"]
    return -w * t["pi"], -w


def _likelihood(t):
    p = math.exp(t["pi"])
    return -t["a"] * p / (p + 0.3), -t["a"] * 0.3 * p / (p + 0.3) ** 2


def _shaped_ratio(t):
    x = math.exp(t["pi"] - t["mu"])
    return -t["a"] * x / (x + 0.1), -t["a"] * 0.1 * x / (x + 0.1) ** 2


def _mixture(t):
    p, old = math.exp(t["pi"]), math.exp(t["prox"])
    value = -t["a"] * math.sqrt(1 - p) * 2 * p / (1.5 * old + 0.5)
    return value, value


def _rehearsal(t, generator, alpha=0.2):
    d = t["pi"] - t["mu"]
    u = math.exp(d)
    if generator == "forward":
        return u - d - 1, u - 1
    if generator == "js":
        return u * d - (u + 1) * math.log((u + 1) / 2), u * (d - math.log((u + 1) / 2))
    a = alpha
    return (u ** (1 - a) - (1 - a) * u - a) / (a * (a - 1)), u * (1 - a) * (u**-a - 1) / (a * (a - 1))


def _sequence_ratio(tokens, geometric):
    n, a = len(tokens), tokens[0]["a"]
    s = math.exp(sum(t["pi"] - t["mu"] for t in tokens) / (n if geometric else 1))
    bounded = max(0.7, min(1.4, s))
    if a * s <= a * bounded:
        return [(-a * s, -a * s * (1 if geometric else n))] * n
    return [(-a * bounded, 0.0)] * n


def _geometric_mean(tokens):
    n, a = len(tokens), tokens[0]["a"]
    sign = _sign(a)
    d = [t["pi"] - t["mu"] for t in tokens]
    clipped = [sign * min(sign * x, sign * max(-0.4, min(0.4, x))) for x in d]
    s = math.exp(sum(clipped) / n)
    return [(-a * s, -a * s if x == y else 0.0) for x, y in zip(d, clipped, strict=True)]


def _squared_sum(tokens):
    total = sum(t["pi"] - t["mu"] for t in tokens)
    return [(0.5 * total**2 / len(tokens), total)] * len(tokens)


def _weighted_by_product(tokens):
    s = math.exp(sum(t["pi"] - t["mu"] for t in tokens))
    w = [t["a"] * (1.0 if t["a"] > 0 else max(0.0, min(1.0, s))) for t in tokens]
    return [(-x * t["pi"], -x) for x, t in zip(w, tokens, strict=True)]


FORMULAS = {
    "ratio": (
        lambda c: ratio_surrogate(c["pi"], c["mu"], c["a"], c["scale"]),
        _per_token(lambda t: (-t["a"] * math.exp(t["pi"] - t["mu"]),) * 2),
    ),
    "soft gate": (lambda c: soft_gate_surrogate(c["pi"], c["mu"], c["a"], c["scale"]), _per_token(_soft_gate)),
    "inverse": (lambda c: inverse_ratio_surrogate(c["pi"], c["mu"], c["a"], c["scale"]), _per_token(_inverse)),
    "recentred": (
        lambda c: recentred_surrogate(c["pi"], c["mu"], c["prox"], c["a"], c["scale"]),
        _per_token(_recentred),
    ),
    "score": (
        lambda c: policy_gradient(c["pi"], c["a"], c["scale"]),
        _per_token(lambda t: (-t["a"] * t["pi"], -t["a"])),
    ),
    "weighted score": (
        lambda c: weighted_policy_gradient(
            c["pi"], c["mu"], c["a"], c["ids"], c["scale"], ratio_min=0.5, ratio_max=1.5
        ),
        _per_token(_clipped_weight),
    ),
    "score weighted by the sequence": (
        lambda c: weighted_policy_gradient(
            c["pi"], c["mu"], c["a"], c["ids"], c["scale"], ratio_max=1.0, level="product", positive_unweighted=True
        ),
        _weighted_by_product,
    ),
    "masked score": (
        lambda c: divergence_masked_policy_gradient(c["pi"], c["mu"], c["a"], c["scale"]),
        _per_token(_masked),
    ),
    "geometric sequence ratio": (
        lambda c: sequence_surrogate(c["pi"], c["mu"], c["a"], c["ids"], c["scale"], clip_low=0.3, clip_high=0.4),
        lambda tokens: _sequence_ratio(tokens, geometric=True),
    ),
    "product sequence ratio": (
        lambda c: sequence_surrogate(
            c["pi"], c["mu"], c["a"], c["ids"], c["scale"], clip_low=0.3, clip_high=0.4, level="product"
        ),
        lambda tokens: _sequence_ratio(tokens, geometric=False),
    ),
    "geometric mean of clipped": (
        lambda c: geometric_mean_surrogate(c["pi"], c["mu"], c["a"], c["ids"], c["scale"]),
        _geometric_mean,
    ),
    "likelihood": (
        lambda c: shaped_likelihood(c["pi"], c["a"], c["scale"], shaping=0.3),
        _per_token(_likelihood),
    ),
    "shaped ratio": (lambda c: shaped_ratio(c["pi"], c["mu"], c["a"], c["scale"]), _per_token(_shaped_ratio)),
    "mixture": (lambda c: mixture_ratio(c["pi"], c["prox"], c["a"], c["scale"]), _per_token(_mixture)),
    "squared log-ratio": (
        lambda c: squared_log_ratio(c["pi"], c["mu"], c["ids"], c["scale"]),
        _per_token(lambda t: ((t["pi"] - t["mu"]) ** 2 / 2, t["pi"] - t["mu"])),
    ),
    "squared sum": (
        lambda c: squared_log_ratio(c["pi"], c["mu"], c["ids"], c["scale"], level="product"),
        _squared_sum,
    ),
    "ratio variance": (
        lambda c: ratio_variance(c["pi"], c["mu"], c["scale"]),
        _per_token(
            lambda t: (
                (math.exp(t["pi"] - t["mu"]) - 1) ** 2,
                2 * (math.exp(t["pi"] - t["mu"]) - 1) * math.exp(t["pi"] - t["mu"]),
            )
        ),
    ),
    **{
        f"rehearsal, {name}": (
            lambda c, name=name: rehearsal_divergence(c["pi"], c["mu"], c["scale"], generator=name),
            _per_token(lambda t, name=name: _rehearsal(t, name)),
        )
        for name in ("forward", "js", "alpha")
    },
}


def _sequences(seed):
    """Sequences of 1 to 6 tokens; the advantage's sign and the scale are those of the sequence, some are left out."""
    rng = random.Random(seed)
    sequences = []
    for i in range(12):
        sign, scale = rng.choice([-1, 1]), rng.choice([0.0, 0.02, 0.05, 0.1])
        sequences.append(
            [
                {
                    "pi": rng.uniform(-2, -0.01),
                    "mu": rng.uniform(-2, -0.01),
                    "prox": rng.uniform(-2, -0.01),
                    "a": sign * 0.8,
                    "ids": float(i),
                    "scale": scale,
                }
                for _ in range(rng.randint(1, 6))
            ]
        )
    return sequences


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", FORMULAS)
def test_agrees_with_the_formula(name, seed):
    function, formula = FORMULAS[name]
    sequences = _sequences(seed)
    tokens = [token for sequence in sequences for token in sequence]
    columns = {key: F.flat(*(token[key] for token in tokens)) for key in tokens[0]}
    columns["pi"].requires_grad_()
    loss = function(columns).loss
    loss.backward()
    expected = [pair for sequence in sequences for pair in formula(sequence)]
    value = math.fsum(t["scale"] * v for t, (v, _) in zip(tokens, expected, strict=True))
    gradient = F.flat(*(t["scale"] * g for t, (_, g) in zip(tokens, expected, strict=True)))
    assert loss.item() == pytest.approx(value, abs=1e-10)
    torch.testing.assert_close(columns["pi"].grad, gradient, atol=1e-10, rtol=0)


def test_the_shaped_mixture_and_constant_weights_of_expert_tokens():
    """P = 0.6, 0.2, 0.05 and probabilities 0.5, 0.25, 0.02 at the start of the update."""
    pi, prox = F.flat(0.6, 0.2, 0.05).log(), F.flat(0.5, 0.25, 0.02).log()
    for i, (shaped, mixed) in enumerate([(0.857143, 0.96), (0.666667, 0.457143), (0.333333, 0.188679)]):
        one = torch.eye(3, dtype=torch.float64)[i]
        assert -shaped_likelihood(pi, torch.ones_like(pi), one).loss.item() == pytest.approx(shaped, abs=5e-7)
        mixture = mixture_ratio(pi, prox, torch.ones_like(pi), one, exploration=0.0)
        assert -mixture.loss.item() == pytest.approx(mixed, abs=5e-7)


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="level='word'"):
        squared_log_ratio(F.PI, F.MU, IDS, F.TOKEN, level="word")
    with pytest.raises(ValueError, match="generator='chi'"):
        rehearsal_divergence(F.PI, F.MU, F.TOKEN, generator="chi")
