"""Losses over a whole update against their published rules in plain floats: statistic, value and gradient."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch

from learner.config import (
    CovarianceClippedSurrogate,
    CovariancePenaltySurrogate,
    LossParams,
    MomentClippedSurrogate,
    ProtectedSurrogate,
    QuotientClippedSurrogate,
)
from learner.losses.table import LOSSES
from learner.statistics import STATISTICS, UpdateTokens
from tests.learner import fixture_f as F

Token = dict[str, float]


def make_tokens(seed: int, count: int = 120) -> list[Token]:
    rng = random.Random(seed)
    tokens = []
    for _ in range(count):
        pi = rng.uniform(-4, -0.02)
        largest = max(pi, math.log(rng.uniform(0.2, 0.9)))
        tokens.append(
            {
                "pi": pi,
                "mu": min(-0.01, pi + rng.gauss(0, 0.5)),
                "a": rng.choice([-1.5, -0.5, 0.0, 0.8]),
                "largest": largest,
                "kept": rng.uniform(0.3, 0.9),
            }
        )
    return tokens


def run(params: LossParams, tokens: list[Token], step: int = 3) -> tuple[float, torch.Tensor, dict[str, Any]]:
    """The statistic and then the loss with the mean over tokens, as the learner runs them: value, gradient, columns."""
    update = UpdateTokens(
        logprobs=np.array([t["pi"] for t in tokens]),
        behavior_logprobs=np.array([t["mu"] for t in tokens]),
        advantages=np.array([t["a"] for t in tokens]),
        sequence_ids=np.arange(len(tokens)),
        group_ids=np.zeros(len(tokens), np.int64),
        measures={
            "largest_logprob": np.array([t["largest"] for t in tokens]),
            "kept_mass": np.array([t["kept"] for t in tokens]),
        },
    )
    assert params.statistic is not None
    made = STATISTICS[params.statistic](update, step, **params.statistic_parameters())
    columns = {name: torch.from_numpy(np.asarray(column, np.float64)) for name, column in made.items()}
    columns |= {
        "logprobs": F.flat(*(t["pi"] for t in tokens)).requires_grad_(),
        "behavior_logprobs": F.flat(*(t["mu"] for t in tokens)),
        "advantages": F.flat(*(t["a"] for t in tokens)),
        "token_scale": torch.full((len(tokens),), 1.0 / len(tokens), dtype=torch.float64),
    }
    name = str(type(params).model_fields["name"].default)
    loss = LOSSES[name].function(**{c: columns[c] for c in LOSSES[name].columns}, **params.parameters()).loss
    loss.backward()
    gradient = columns["logprobs"].grad
    assert gradient is not None
    return loss.item(), gradient, made


def check(got: tuple[float, torch.Tensor, Any], expected: list[tuple[float, float]]) -> None:
    count = len(expected)
    assert got[0] == pytest.approx(math.fsum(v for v, _ in expected) / count, abs=1e-10)
    torch.testing.assert_close(got[1], F.flat(*(g / count for _, g in expected)), atol=1e-10, rtol=0)


def covariances(tokens: list[Token]) -> list[float]:
    mean_a = math.fsum(t["a"] for t in tokens) / len(tokens)
    mean_pi = math.fsum(t["pi"] for t in tokens) / len(tokens)
    return [(t["a"] - mean_a) * (t["pi"] - mean_pi) for t in tokens]


def clipped(t: Token, low: float, high: float, dual: float | None = None) -> tuple[float, float]:
    """PPO's loss of a token and its derivative, with bounds on the ratio itself."""
    r, a = math.exp(t["pi"] - t["mu"]), t["a"]
    bounded = max(low, min(high, r))
    value, slope = (-a * r, -a * r) if -a * r >= -a * bounded else (-a * bounded, 0.0)
    if dual is not None and a < 0 and value > -a * dual:
        return -a * dual, 0.0
    return value, slope


@pytest.mark.parametrize("seed", range(3))
def test_clip_cov(seed):
    tokens = make_tokens(seed)
    got = run(CovarianceClippedSurrogate(share=0.1, low=0.2, high=1.0), tokens)
    picked = got[2]["picked"]
    eligible = [0.2 < c < 1.0 for c in covariances(tokens)]
    assert 0 < picked.sum() == min(sum(eligible), 12)  # a tenth of 120 tokens
    assert all(ok for ok, p in zip(eligible, picked, strict=True) if p)
    expected = [(0.0, 0.0) if p else clipped(t, 0.8, 1.2) for t, p in zip(tokens, picked, strict=True)]
    check(got, expected)


@pytest.mark.parametrize("seed", range(3))
def test_kl_cov(seed):
    tokens = make_tokens(seed)
    cov = covariances(tokens)
    top = sorted(range(len(tokens)), key=lambda i: -cov[i])[:6]
    expected = []
    for i, t in enumerate(tokens):
        d = t["pi"] - t["mu"]
        value = -t["a"] * math.exp(d)
        pays = i in top
        expected.append((value + 0.7 * abs(d) * pays, value + 0.7 * math.copysign(1, d) * pays))
    check(run(CovariancePenaltySurrogate(share=0.05, penalty=0.7), tokens), expected)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("target", [0.3, 0.7, 1.1, 3.0])
def test_bapo(seed, target):
    tokens = make_tokens(seed)

    def quotient(low: float, high: float) -> float:
        ratio = [(math.exp(t["pi"] - t["mu"]), t["a"]) for t in tokens]
        above = math.fsum(min(r, high) * a for r, a in ratio if a >= 0)
        return above / math.fsum(max(r, low) * -a for r, a in ratio if a < 0)

    low, high = 0.6, 1.2
    while quotient(low, high) < target and low < 0.8 - 1e-9:
        low += 0.05
    while quotient(low, high) < target and high < 2.0 - 1e-9:
        high += 0.05
    check(run(QuotientClippedSurrogate(target=target), tokens), [clipped(t, low, high, dual=3.0) for t in tokens])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("budget", [0.02, 0.1, 9.0])
def test_m2po(seed, budget):
    tokens = make_tokens(seed)
    ratio = [math.exp(t["pi"] - t["mu"]) for t in tokens]
    harmful = [(t["a"] > 0 and r > 1) or (t["a"] < 0 and r < 1) for t, r in zip(tokens, ratio, strict=True)]
    v = sorted((t["pi"] - t["mu"]) ** 2 for t, h in zip(tokens, harmful, strict=True) if h)
    n = len(v)
    low, high = 0.0, math.inf
    if math.fsum(v) / n > budget:
        k = next(k for k in range(n) if v[k] * (n - k - 1) + math.fsum(v[: k + 1]) >= budget * n)
        tau = math.sqrt(v[k - 1] - 1e-12) if k else 0.0
        low, high = math.exp(-tau), math.exp(tau)
    assert (budget == 9.0) == (high == math.inf)
    check(run(MomentClippedSurrogate(budget=budget), tokens), [clipped(t, low, high) for t in tokens])


@pytest.mark.parametrize("seed", range(3))
def test_lp_reg(seed):
    tokens = make_tokens(seed)
    params = ProtectedSurrogate(share=0.5, min_ratio=0.05, penalty=0.6, clip_low=0.9, clip_high=2.0)
    lowest = sorted(range(len(tokens)), key=lambda i: tokens[i]["pi"])[:60]  # half of 120
    expected, num_protected = [], 0
    for i, t in enumerate(tokens):
        p, kept = math.exp(t["pi"]), t["pi"] >= math.log(0.05) + t["largest"]
        proxy = t["pi"] - math.log(t["kept"]) if kept else -1e4
        if i in lowest and t["a"] < 0 and t["pi"] < proxy:
            d = proxy - t["pi"]
            surrogate = -t["a"] * p / math.exp(t["mu"])
            expected.append((surrogate + 0.6 * (math.exp(d) - d - 1), surrogate + 0.6 * (1 - math.exp(d))))
            num_protected += 1
        else:
            expected.append(clipped(t, 1 - 0.9, 1 + 2.0))
    assert 3 < num_protected < 60
    check(run(params, tokens), expected)
