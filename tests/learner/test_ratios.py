from __future__ import annotations

import math

import pytest
import torch

from learner import ratios
from learner.config import KLToReference
from tests.learner.fixture_f import MU, PI, PROX, REF, flat

ALL = torch.ones(5, dtype=torch.bool)


def test_ratios_of_the_fixture():
    r = ratios.log_ratio(PI, PROX, ALL).exp()
    rho = ratios.log_ratio(PROX, MU, ALL).exp()
    torch.testing.assert_close(r, flat(1.221403, 0.740818, 1.349859, 0.860708, 1.349859), atol=5e-7, rtol=0)
    torch.testing.assert_close(rho, flat(0.904837, 1.105171, 1.221403, 0.951229, 1.105171), atol=5e-7, rtol=0)


def test_log_ratio_is_clamped_and_safe_outside_the_mask():
    logprobs = flat(-1.0, -1e9, 0.0, math.nan, -1.0).requires_grad_()
    other = flat(-1e9, -1.0, 0.0, -1.0, math.nan)
    mask = torch.tensor([True, True, True, False, False])
    difference = ratios.log_ratio(logprobs, other, mask)
    assert difference.tolist() == [ratios.MAX_LOG_RATIO, -ratios.MAX_LOG_RATIO, 0.0, 0.0, 0.0]
    difference.exp().sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [0.0, 0.0, 1.0, 0.0, 0.0]


def test_unknown_values_are_refused_with_their_number():
    values = flat(-1.0, math.nan, -math.inf, math.nan, -2.0)
    with pytest.raises(ValueError, match=r"behavior_logprobs are unknown .* for 2 of 3 trained tokens"):
        ratios.require_known("behavior_logprobs", values, torch.tensor([True, True, True, False, False]))
    ratios.require_known("behavior_logprobs", values, torch.tensor([True, False, False, False, True]))


@pytest.mark.parametrize(("name", "mean"), [("k1", 0.12), ("k2", 0.04), ("k3", 0.035752), ("k3+", 0.035752)])
def test_kl_estimators_on_the_fixture(name, mean):
    assert ratios.KL_ESTIMATORS[name](PI - REF).mean().item() == pytest.approx(mean, abs=5e-7)


def test_kl_estimators_are_unbiased_or_close_on_samples():
    """k1 and k3 average to the exact KL of two categorical distributions; k2's gradient is that of the KL."""
    logits = torch.tensor([0.3, -0.5, 1.1, 0.2], dtype=torch.float64, requires_grad=True)
    log_p = torch.log_softmax(logits, -1)
    log_q = torch.log_softmax(flat(0.1, 0.4, 0.9, -0.6), -1)
    p = log_p.exp().detach()
    exact = (log_p.exp() * (log_p - log_q)).sum()
    for name in ("k1", "k3"):
        expected = (p * ratios.KL_ESTIMATORS[name](log_p - log_q)).sum()
        assert expected.item() == pytest.approx(exact.item(), abs=1e-12)
    (gradient,) = torch.autograd.grad(exact, logits, retain_graph=True)
    for name in ("k2", "k3+"):
        (estimate,) = torch.autograd.grad(
            (p * ratios.KL_ESTIMATORS[name](log_p - log_q)).sum(), logits, retain_graph=True
        )
        torch.testing.assert_close(estimate, gradient, atol=1e-12, rtol=0)


def test_k3_keeps_its_precision_near_zero():
    d = flat(1e-8)
    assert ratios.k3(d).item() == pytest.approx(0.5e-16, rel=1e-6)
    assert ratios.k3(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


def test_estimator_table_matches_the_config():
    assert set(ratios.KL_ESTIMATORS) == set(KLToReference.model_fields["estimator"].annotation.__args__)


def test_mismatch_of_the_fixture():
    m = {k: v.item() for k, v in ratios.mismatch_metrics(PROX, MU, ALL).items()}
    assert m["squared_ratio_sum"] / 5 - 1 == pytest.approx(0.13164, abs=5e-7)  # chi2_token
    ess = ratios.effective_sample_fraction(m["ratio_sum"], m["squared_ratio_sum"], 5)
    assert ess == pytest.approx(0.988334, abs=5e-7)
    assert m["mismatch_sum"] == pytest.approx(0.1 + 0.1 + 0.2 + 0.05 + 0.1)
    assert m["mismatch_max"] == pytest.approx(0.2)


def test_mismatch_sees_masked_tokens_only():
    mask = torch.tensor([True, False, False, False, False])
    m = ratios.mismatch_metrics(PROX, torch.where(mask, MU, math.nan), mask)
    assert m["ratio_sum"].item() == pytest.approx(math.exp(-0.1))
    assert m["mismatch_max"].item() == pytest.approx(0.1)
    empty = ratios.mismatch_metrics(PROX[:0], MU[:0], ALL[:0])
    assert [v.item() for v in empty.values()] == [0.0] * len(empty)


def test_effective_sample_fraction():
    assert ratios.effective_sample_fraction(4.0, 4.0, 4) == 1.0
    assert ratios.effective_sample_fraction(3.0, 9.0, 4) == 0.25
    with pytest.raises(ValueError, match="count=0"):
        ratios.effective_sample_fraction(0.0, 0.0, 0)


IDS = flat(0, 0, 0, 1, 1)


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("geometric", [1.068939] * 3 + [1.077884] * 2),
        ("product", [1.221403] * 3 + [1.161834] * 2),
        ("token", [1.221403, 0.740818, 1.349859, 0.860708, 1.349859]),
    ],
)
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 2, 0, 3, 1]])
def test_levels_of_the_fixture_in_any_order(level, expected, order):
    log_ratio = ratios.log_ratio(PI, PROX, ALL)[order]
    result = ratios.at_level(log_ratio, IDS[order], ALL, level).exp()
    torch.testing.assert_close(result, flat(*expected)[order], atol=5e-7, rtol=0)


def test_sequence_sums_read_and_write_the_mask_only():
    mask = torch.tensor([True, True, False, False, True])
    values = flat(1.0, 2.0, math.nan, math.nan, 8.0).requires_grad_()
    sums = ratios.sequence_sums(values, flat(3, 3, math.nan, 7, 7), mask)
    assert sums.tolist() == [3.0, 3.0, 0.0, 0.0, 8.0]
    (gradient,) = torch.autograd.grad(sums.sum(), values)
    assert gradient.tolist() == [2.0, 2.0, 0.0, 0.0, 1.0]
    with pytest.raises(ValueError, match="level='word'"):
        ratios.at_level(values, IDS, mask, "word")
