"""Regularizers: what keeps the policy close to another one, or open."""

from __future__ import annotations

import torch
from torch import Tensor

from learner.losses.output import LossOutput
from learner.ratios import KL_ESTIMATORS, at_level, k3, log_ratio, mismatch_metrics, require_known


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


def squared_log_ratio(
    logprobs: Tensor, behavior_logprobs: Tensor, sequence_ids: Tensor, token_scale: Tensor, *, level: str = "token"
) -> LossOutput:
    """Half the squared distance, in nats, to the policy that sampled; valid for stale samples, no ratio is formed.

    d = logprobs - behavior_logprobs
    token: loss = sum(token_scale * d^2 / 2).  product: d^2 is that of the sequence's sum, once per sequence when
    token_scale is constant within it and the aggregation adds up tokens ("constant"); it grows with length squared.

    Args:
        logprobs: [N] nats, policy being trained; the only input that carries gradient.
        behavior_logprobs: [N] nats, policy that sampled the token.
        sequence_ids: [N] equal for tokens of one sequence.
        token_scale: [N] factor of each token, global denominators divided out; 0 takes a token out altogether.

    Returns:
        Metrics of `mismatch_metrics`.

    Raises:
        ValueError: behaviour log-probs unknown for a selected token; unknown level.

    Source: policy mirror descent, Kimi k1.5, arXiv:2501.12599, section 2.3 (product); DRO, arXiv:2405.19107.
    """
    mask = token_scale != 0
    require_known("behavior_logprobs", behavior_logprobs, mask)
    difference = log_ratio(logprobs, behavior_logprobs.detach(), mask)
    # Each token carries its own part of the sequence's square, so that the parts add up to it.
    squares = difference * at_level(difference, sequence_ids, mask, level)
    return LossOutput(
        loss=(token_scale * 0.5 * squares).sum(), metrics=mismatch_metrics(logprobs, behavior_logprobs, mask)
    )


def ratio_variance(logprobs: Tensor, behavior_logprobs: Tensor, token_scale: Tensor) -> LossOutput:
    """Second moment of the importance ratio around 1: a soft bound in place of a clip.

    loss = sum(token_scale * (exp(logprobs - behavior_logprobs) - 1)^2)

    Args, Raises: as `importance_weighted_kl`.

    Returns:
        Metrics of `mismatch_metrics`.

    Source: R2VPO, from its abstract and a third-party account; whether 1 or the mean ratio is the centre is open.
    """
    mask = token_scale != 0
    require_known("behavior_logprobs", behavior_logprobs, mask)
    excess = torch.expm1(log_ratio(logprobs, behavior_logprobs.detach(), mask))
    return LossOutput(
        loss=(token_scale * excess.square()).sum(), metrics=mismatch_metrics(logprobs, behavior_logprobs, mask)
    )


def rehearsal_divergence(
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    token_scale: Tensor,
    *,
    generator: str = "forward",
    alpha: float = 0.2,
) -> LossOutput:
    """Divergence to a frozen policy on that policy's own stored samples: the mass it covered stays covered.

    u = exp(logprobs - behavior_logprobs);  loss = sum(token_scale * f(u))
    forward: u - ln u - 1.  js: u ln u - (u + 1) ln((u + 1) / 2).  alpha: (u^(1-a) - (1-a) u - a) / (a (a - 1))

    On samples of the policy being trained these expectations would be wrong.

    Args, Raises: as `importance_weighted_kl`; also ValueError for an unknown generator.

    Returns:
        Metrics kl_sum (of the chosen divergence) and those of `mismatch_metrics`.

    Source: DPH-RL, arXiv:2509.07430.
    """
    mask = token_scale != 0
    require_known("behavior_logprobs", behavior_logprobs, mask)
    log_u = log_ratio(logprobs, behavior_logprobs.detach(), mask)
    u = log_u.exp()
    if generator == "forward":
        divergence = torch.expm1(log_u) - log_u
    elif generator == "js":
        divergence = u * log_u - (u + 1.0) * ((u + 1.0) / 2.0).log()
    elif generator == "alpha":
        divergence = (((1.0 - alpha) * log_u).exp() - (1.0 - alpha) * u - alpha) / (alpha * (alpha - 1.0))
    else:
        raise ValueError(f"generator={generator!r} is not one of forward, js, alpha")
    return LossOutput(
        loss=(token_scale * divergence).sum(),
        metrics={"kl_sum": (divergence.detach() * mask).sum(), **mismatch_metrics(logprobs, behavior_logprobs, mask)},
    )
