"""Policy-gradient surrogates: what the policy's own samples teach."""

from __future__ import annotations

import torch
from torch import Tensor

from learner.losses.output import LossOutput
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
    advantages = torch.where(mask, advantages, 0.0).detach()
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
