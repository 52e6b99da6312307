"""Policy-gradient surrogates: what the policy's own samples teach."""

from __future__ import annotations

import torch
from torch import Tensor

from learner.losses.output import LossOutput, selected
from learner.ratios import log_ratio, mismatch_metrics, require_known


def clipped_surrogate(
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    advantages: Tensor,
    token_scale: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> LossOutput:
    """Policy-gradient surrogate that stops paying once a token's ratio leaves its bounds.

    r = exp(logprobs - behavior_logprobs);  loss = -sum(token_scale * min(r*A, clip(r, 1-low, 1+high)*A))

    With dual_clip = c the loss of a token with A < 0 is at most -c*A. A token that is clipped keeps its value but has
    no gradient, so the value of this loss is no measure of progress.

    Args:
        logprobs: [N] nats, policy being trained; the only input that carries gradient.
        behavior_logprobs: [N] nats, policy that sampled the token.
        advantages: [N] reward units.
        token_scale: [N] factor of each token, global denominators divided out; 0 takes a token out altogether.

    Returns:
        Metrics clip_count (tokens without gradient because of a bound) and those of `mismatch_metrics`.

    Raises:
        ValueError: behaviour log-probs unknown for a selected token.

    Source: PPO, arXiv:1707.06347, section 3; separate bounds, DAPO, arXiv:2503.14476; dual clip, arXiv:1912.09729.
    """
    mask = token_scale != 0
    require_known("behavior_logprobs", behavior_logprobs, mask)
    ratio = log_ratio(logprobs, behavior_logprobs.detach(), mask).exp()
    advantages = selected(advantages, mask)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    token_loss = torch.maximum(unclipped, clipped)
    without_gradient = clipped > unclipped
    if dual_clip is not None:
        bound = -advantages * dual_clip
        too_bad = (advantages < 0) & (token_loss > bound)
        token_loss = torch.where(too_bad, bound, token_loss)
        without_gradient = without_gradient | too_bad
    return LossOutput(
        loss=(token_scale * token_loss).sum(),
        metrics={
            "clip_count": without_gradient.sum().to(logprobs.dtype),
            **mismatch_metrics(logprobs, behavior_logprobs, mask),
        },
    )


def ratio_surrogate(logprobs: Tensor, behavior_logprobs: Tensor, advantages: Tensor, token_scale: Tensor) -> LossOutput:
    """The surrogate without any bound: something else has to hold the policy.

    r = exp(logprobs - behavior_logprobs);  loss = -sum(token_scale * r * A)

    Args, Raises: as `clipped_surrogate`.

    Returns:
        Metrics of `mismatch_metrics`.

    Source: own rows of LUFFY, arXiv:2504.14945, and RL-PLUS, arXiv:2508.00222; primal part of R2VPO.
    """
    mask = token_scale != 0
    require_known("behavior_logprobs", behavior_logprobs, mask)
    ratio = log_ratio(logprobs, behavior_logprobs.detach(), mask).exp()
    return LossOutput(
        loss=-(token_scale * selected(advantages, mask) * ratio).sum(),
        metrics=mismatch_metrics(logprobs, behavior_logprobs, mask),
    )


def recentred_surrogate(
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    proximal_logprobs: Tensor,
    advantages: Tensor,
    token_scale: Tensor,
    *,
    clip: float = 0.2,
) -> LossOutput:
    """Clipped surrogate on the ratio to an old policy, its bounds laid around the policy the update starts from.

    q = exp(logprobs - behavior_logprobs), c = exp(proximal_logprobs - behavior_logprobs)
    loss = -sum(token_scale * min(q*A, clip(q, c - clip, c + clip)*A))

    Args, Raises: as `clipped_surrogate`.
        proximal_logprobs: [N] nats, policy at the start of the update.

    Returns:
        Metrics clip_count and those of `mismatch_metrics`.

    Source: Mix-PPG of ReMix, arXiv:2507.06892, from a second-hand account; no code was published.
    """
    mask = token_scale != 0
    require_known("behavior_logprobs", behavior_logprobs, mask)
    behavior = behavior_logprobs.detach()
    ratio = log_ratio(logprobs, behavior, mask).exp()
    centre = log_ratio(proximal_logprobs.detach(), behavior, mask).exp()
    advantages = selected(advantages, mask)
    unclipped = -advantages * ratio
    clipped = -advantages * torch.minimum(torch.maximum(ratio, centre - clip), centre + clip)
    return LossOutput(
        loss=(token_scale * torch.maximum(unclipped, clipped)).sum(),
        metrics={
            "clip_count": (clipped > unclipped).sum().to(logprobs.dtype),
            **mismatch_metrics(logprobs, behavior_logprobs, mask),
        },
    )


def soft_gate_surrogate(
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    advantages: Tensor,
    token_scale: Tensor,
    *,
    temperature_positive: float = 1.0,
    temperature_negative: float = 1.05,
) -> LossOutput:
    """A sigmoid in place of the clip: the pay for moving a token fades out and never jumps.

    f(r) = 4/tau * sigmoid(tau * (r - 1)), whose slope at r = 1 is 1;  loss = -sum(token_scale * f(r) * A)

    Args, Raises: as `clipped_surrogate`.

    Returns:
        Metrics of `mismatch_metrics`.

    Source: SAPO, arXiv:2511.20347.
    """
    mask = token_scale != 0
    require_known("behavior_logprobs", behavior_logprobs, mask)
    ratio = log_ratio(logprobs, behavior_logprobs.detach(), mask).exp()
    advantages = selected(advantages, mask)
    tau = torch.full_like(ratio, temperature_negative).masked_fill(advantages > 0, temperature_positive)
    gate = 4.0 / tau * torch.sigmoid(tau * (ratio - 1.0))
    return LossOutput(
        loss=-(token_scale * gate * advantages).sum(),
        metrics=mismatch_metrics(logprobs, behavior_logprobs, mask),
    )


def inverse_ratio_surrogate(
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    advantages: Tensor,
    token_scale: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    max_weight: float = 3.0,
    dual_clip: float = 3.0,
) -> LossOutput:
    """Tokens of positive advantage weigh 1/r instead of r, so that unlikely ones are raised more, not less.

    A > 0: loss = -A * w with w = min(1/r, max_weight) in value and w * d logprobs as its gradient.
    A < 0: loss = -A * min(r, dual_clip).  Tokens outside the clip bounds on the side A pulls to are out, value and all.

    Args, Raises: as `clipped_surrogate`.

    Returns:
        Metrics clip_count and those of `mismatch_metrics`.

    Source: ASPO, arXiv:2510.06062, version 2.
    """
    mask = token_scale != 0
    require_known("behavior_logprobs", behavior_logprobs, mask)
    difference = log_ratio(logprobs, behavior_logprobs.detach(), mask)
    ratio = difference.exp()
    advantages = selected(advantages, mask)
    out = ((advantages > 0) & (ratio > 1.0 + clip_high)) | ((advantages < 0) & (ratio < 1.0 - clip_low))
    weight = (-difference).exp().clamp(max=max_weight).detach() * (difference - difference.detach()).exp()
    token_loss = -advantages * torch.where(advantages > 0, weight, ratio.clamp(max=dual_clip))
    return LossOutput(
        loss=(token_scale * torch.where(out, 0.0, token_loss)).sum(),
        metrics={
            "clip_count": (out & mask).sum().to(logprobs.dtype),
            **mismatch_metrics(logprobs, behavior_logprobs, mask),
        },
    )
