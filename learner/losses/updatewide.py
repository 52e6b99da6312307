"""Losses with columns that depend on all tokens of an update; `learner.statistics` makes those columns first."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from learner.losses.output import LossOutput, selected
from learner.ratios import k3, log_ratio, mismatch_metrics, require_known


def covariance_clipped_surrogate(
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    advantages: Tensor,
    picked: Tensor,
    token_scale: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> LossOutput:
    """Clipped surrogate without the picked tokens, a few of those whose log-prob and advantage go together.

    loss = -sum(token_scale * (1 - picked) * min(r*A, clip(r, 1-low, 1+high)*A)),  r as in `clipped_surrogate`

    Args:
        logprobs: [N] nats, policy being trained; the only input that carries gradient.
        behavior_logprobs: [N] nats, policy that sampled the token.
        advantages: [N] reward units.
        picked: [N] 1 for a token that is left out, else 0.
        token_scale: [N] factor of each token, global denominators divided out; 0 takes a token out altogether.

    Returns:
        Metrics clip_count (tokens without gradient) and those of `mismatch_metrics`.

    Raises:
        ValueError: behaviour log-probs unknown for a selected token.

    Source: Clip-Cov, arXiv:2505.22617.
    """
    mask = token_scale != 0
    ratio = _ratio(logprobs, behavior_logprobs, mask)
    advantages, left_out = selected(advantages, mask), selected(picked, mask)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    without_gradient = (clipped > unclipped) | (left_out > 0)
    return LossOutput(
        loss=(token_scale * (1.0 - left_out) * torch.maximum(unclipped, clipped)).sum(),
        metrics={
            "clip_count": without_gradient.sum().to(logprobs.dtype),
            **mismatch_metrics(logprobs, behavior_logprobs, mask),
        },
    )


def covariance_penalty_surrogate(
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    advantages: Tensor,
    picked: Tensor,
    token_scale: Tensor,
    *,
    penalty: float = 1.0,
) -> LossOutput:
    """Surrogate without bounds; the picked tokens pay for their distance to the sampling policy.

    loss = sum(token_scale * (-r*A + penalty * picked * |logprobs - behavior_logprobs|))

    Args, Raises: as `covariance_clipped_surrogate`.

    Returns:
        Metrics of `mismatch_metrics`.

    Source: KL-Cov, arXiv:2505.22617.
    """
    mask = token_scale != 0
    require_known("behavior_logprobs", behavior_logprobs, mask)
    difference = log_ratio(logprobs, behavior_logprobs.detach(), mask)
    distance = penalty * selected(picked, mask) * difference.abs()
    return LossOutput(
        loss=(token_scale * (distance - selected(advantages, mask) * difference.exp())).sum(),
        metrics=mismatch_metrics(logprobs, behavior_logprobs, mask),
    )


def quotient_clipped_surrogate(
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    advantages: Tensor,
    bound_low: Tensor,
    bound_high: Tensor,
    token_scale: Tensor,
    *,
    dual_clip: float = 3.0,
) -> LossOutput:
    """Clipped surrogate whose bounds move until good tokens weigh enough beside bad ones.

    loss = -sum(token_scale * min(r*A, clip(r, bound_low, bound_high)*A)), not above -dual_clip*A where A < 0

    Args, Returns, Raises: as `covariance_clipped_surrogate`; bound_low, bound_high: [N] bounds of the ratio.

    Source: BAPO, WooooDyy/BAPO.
    """
    return _clipped(logprobs, behavior_logprobs, advantages, bound_low, bound_high, token_scale, dual_clip)


def moment_clipped_surrogate(
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    advantages: Tensor,
    bound_low: Tensor,
    bound_high: Tensor,
    token_scale: Tensor,
) -> LossOutput:
    """Clipped surrogate whose bounds keep the second moment of the harmful log-ratios within a budget.

    loss = -sum(token_scale * min(r*A, clip(r, bound_low, bound_high)*A))

    Args, Returns, Raises: as `quotient_clipped_surrogate`.

    Source: M2PO, Infini-AI-Lab/M2PO.
    """
    return _clipped(logprobs, behavior_logprobs, advantages, bound_low, bound_high, token_scale, None)


def optimal_baseline_gradient(
    logprobs: Tensor, advantages: Tensor, baseline: Tensor, token_scale: Tensor
) -> LossOutput:
    """REINFORCE with a baseline per position of the group, weighted by how much each prefix moves the weights.

    loss = -sum(token_scale * (A - baseline) * logprobs)

    Args:
        logprobs, advantages, token_scale: as `covariance_clipped_surrogate`; advantages are scores.
        baseline: [N] reward units.

    Source: optimal token baseline, as in verl's `compute_optimal_token_baseline_advantage`.
    """
    mask = token_scale != 0
    advantages = selected(advantages, mask) - selected(baseline, mask)
    return LossOutput(loss=-(token_scale * advantages * torch.where(mask, logprobs, 0.0)).sum())


def protected_surrogate(
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    advantages: Tensor,
    proxy_logprobs: Tensor,
    token_scale: Tensor,
    *,
    clip_low: float = 1.0,
    clip_high: float = 9.0,
    penalty: float = 1.0,
) -> LossOutput:
    """Unlikely tokens that a denoised copy of the policy finds likelier are kept from being pushed down.

    protected: -r*A + penalty * (exp(d) - d - 1), d = proxy_logprobs - logprobs
    others:    -min(r*A, clip(r, 1-low, 1+high)*A);  loss = sum(token_scale * either)

    Args, Returns, Raises: as `covariance_clipped_surrogate`; proxy_logprobs: [N] nats, NaN where not protected.

    Source: Lp-Reg, CarlanLark/Lp-Reg-dev.
    """
    mask = token_scale != 0
    ratio = _ratio(logprobs, behavior_logprobs, mask)
    advantages = selected(advantages, mask)
    protected = mask & torch.isfinite(proxy_logprobs)
    distance = k3(log_ratio(logprobs, proxy_logprobs.detach(), protected))
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    token_loss = torch.where(protected, unclipped + penalty * distance, torch.maximum(unclipped, clipped))
    return LossOutput(
        loss=(token_scale * token_loss).sum(),
        metrics={
            "clip_count": (~protected & (clipped > unclipped)).sum().to(logprobs.dtype),
            "protected_count": protected.sum().to(logprobs.dtype),
            **mismatch_metrics(logprobs, behavior_logprobs, mask),
        },
    )


def _ratio(logprobs: Tensor, behavior_logprobs: Tensor, mask: Tensor) -> Tensor:
    require_known("behavior_logprobs", behavior_logprobs, mask)
    return log_ratio(logprobs, behavior_logprobs.detach(), mask).exp()


def _clipped(
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    advantages: Tensor,
    bound_low: Tensor,
    bound_high: Tensor,
    token_scale: Tensor,
    dual_clip: float | None,
) -> LossOutput:
    mask = token_scale != 0
    ratio = _ratio(logprobs, behavior_logprobs, mask)
    advantages = selected(advantages, mask)
    bounded = torch.minimum(torch.maximum(ratio, selected(bound_low, mask)), selected(bound_high, mask))
    unclipped, clipped = -advantages * ratio, -advantages * bounded
    token_loss, without_gradient = torch.maximum(unclipped, clipped), clipped > unclipped
    if dual_clip is not None:
        bound = -advantages * dual_clip
        too_bad = (advantages < 0) & (token_loss > bound)
        token_loss, without_gradient = torch.where(too_bad, bound, token_loss), without_gradient | too_bad
    return LossOutput(
        loss=(token_scale * token_loss).sum(),
        metrics={
            "clip_count": without_gradient.sum().to(logprobs.dtype),
            **mismatch_metrics(logprobs, behavior_logprobs, mask),
        },
    )


UPDATE_WIDE_LOSSES: tuple[Callable[..., LossOutput], ...] = (
    covariance_clipped_surrogate,
    covariance_penalty_surrogate,
    quotient_clipped_surrogate,
    moment_clipped_surrogate,
    optimal_baseline_gradient,
    protected_surrogate,
)
"""What `learner.losses.table` lists of this file."""
