"""Regularizers: what keeps the policy close to another one, or open."""

from __future__ import annotations

import torch
from torch import Tensor

from learner.losses.output import LossOutput
from learner.ratios import KL_ESTIMATORS, k3, log_ratio, mismatch_metrics, require_known


def kl_to_reference(
    logprobs: Tensor, reference_logprobs: Tensor, token_scale: Tensor, *, estimator: str = "k3"
) -> LossOutput:
    """Estimate of KL(policy || reference) from the taken tokens, which must be the policy's own recent samples.

    d = logprobs - reference_logprobs;  loss = sum(token_scale * estimator(d)), see `learner.ratios.KL_ESTIMATORS`

    Args:
        logprobs: [N] nats, policy being trained; the only input that carries gradient.
        reference_logprobs: [N] nats, frozen reference.
        token_scale: [N] factor of each token, global denominators divided out; 0 takes a token out altogether.

    Returns:
        Metric kl_sum (nats, of the chosen estimator).

    Raises:
        ValueError: unknown estimator, or reference log-probs unknown for a selected token.
    """
    if estimator not in KL_ESTIMATORS:
        raise ValueError(f"estimator={estimator!r} is not one of {', '.join(KL_ESTIMATORS)}")
    mask = token_scale != 0
    require_known("reference_logprobs", reference_logprobs, mask)
    kl = KL_ESTIMATORS[estimator](log_ratio(logprobs, reference_logprobs.detach(), mask))
    return LossOutput(loss=(token_scale * kl).sum(), metrics={"kl_sum": kl.detach().sum()})


def importance_weighted_kl(
    logprobs: Tensor, behavior_logprobs: Tensor, reference_logprobs: Tensor, token_scale: Tensor
) -> LossOutput:
    """k3 weighted by the importance ratio, with the ratio's gradient: right also for stale samples.

    q = exp(logprobs - behavior_logprobs);  loss = sum(token_scale * q * k3(logprobs - reference_logprobs))

    Args:
        logprobs: [N] nats, policy being trained; the only input that carries gradient.
        behavior_logprobs: [N] nats, policy that sampled the token.
        reference_logprobs: [N] nats, frozen reference.
        token_scale: [N] factor of each token, global denominators divided out; 0 takes a token out altogether.

    Returns:
        Metrics kl_sum (nats, weighted) and those of `mismatch_metrics`.

    Raises:
        ValueError: behaviour or reference log-probs unknown for a selected token.

    Source: the unbiased KL estimate of DeepSeek-V3.2, arXiv:2512.02556.
    """
    mask = token_scale != 0
    require_known("behavior_logprobs", behavior_logprobs, mask)
    require_known("reference_logprobs", reference_logprobs, mask)
    ratio = log_ratio(logprobs, behavior_logprobs.detach(), mask).exp()
    kl = ratio * k3(log_ratio(logprobs, reference_logprobs.detach(), mask))
    return LossOutput(
        loss=(token_scale * kl).sum(),
        metrics={"kl_sum": kl.detach().sum(), **mismatch_metrics(logprobs, behavior_logprobs, mask)},
    )


def entropy_bonus(entropy: Tensor, token_scale: Tensor) -> LossOutput:
    """Minus the policy's entropy over the whole vocabulary: a positive weight keeps the policy exploring.

    loss = -sum(token_scale * entropy)

    Args:
        entropy: [N] nats of the distribution the token was drawn from, with gradient.
        token_scale: [N] factor of each token, global denominators divided out; 0 takes a token out altogether.

    Returns:
        Metric entropy_sum (nats).
    """
    selected = torch.where(token_scale != 0, entropy, 0.0)
    return LossOutput(loss=-(token_scale * selected).sum(), metrics={"entropy_sum": selected.detach().sum()})
