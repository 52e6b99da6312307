"""Surrogates of whole sequences. A sequence lies in one micro-batch, so its sums are complete."""

from __future__ import annotations

import torch
from torch import Tensor

from learner.losses.output import LossOutput, selected
from learner.ratios import at_level, log_ratio, mismatch_metrics, require_known


def sequence_surrogate(
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    advantages: Tensor,
    sequence_ids: Tensor,
    token_scale: Tensor,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    level: str = "geometric",
) -> LossOutput:
    """Clipped surrogate on the ratio of the whole sequence.

    s = exp(mean (geometric) or sum (product) over the sequence of logprobs - behavior_logprobs)
    loss = -sum(token_scale * min(s*A, clip(s, 1-low, 1+high)*A)); with aggregation "sequence" a mean over sequences

    Geometric ratios lie close to 1, hence the tight bounds. Another aggregation gives long sequences more weight.

    Args:
        logprobs: [N] nats, policy being trained; the only input that carries gradient.
        behavior_logprobs: [N] nats, policy that sampled the token.
        advantages: [N] reward units.
        sequence_ids: [N] equal for tokens of one sequence.
        token_scale: [N] factor of each token, global denominators divided out; 0 takes a token out altogether.

    Returns:
        Metrics clip_count (tokens of clipped sequences) and those of `mismatch_metrics`, which are per token.

    Raises:
        ValueError: behaviour log-probs unknown for a selected token; unknown level.

    Source: GSPO, arXiv:2507.18071.
    """
    mask = token_scale != 0
    require_known("behavior_logprobs", behavior_logprobs, mask)
    difference = log_ratio(logprobs, behavior_logprobs.detach(), mask)
    ratio = at_level(difference, sequence_ids, mask, level).exp()
    advantages = selected(advantages, mask)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    return LossOutput(
        loss=(token_scale * torch.maximum(unclipped, clipped)).sum(),
        metrics={
            "clip_count": (clipped > unclipped).sum().to(logprobs.dtype),
            **mismatch_metrics(logprobs, behavior_logprobs, mask),
        },
    )


def geometric_mean_surrogate(
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    advantages: Tensor,
    sequence_ids: Tensor,
    token_scale: Tensor,
    *,
    clip_low: float = 0.4,
    clip_high: float = 0.4,
) -> LossOutput:
    """Geometric mean of the sequence's ratios, each token clipped by itself before, in nats.

    d' = sgn(A) * min(sgn(A) * d, sgn(A) * clip(d, -low, high));  loss = -sum(token_scale * A * exp(mean of d'))

    Args, Raises: as `sequence_surrogate`; advantages must not change sign within a sequence.

    Returns:
        Metrics clip_count and those of `mismatch_metrics`.

    Source: GMPO, arXiv:2507.20673. The mean is over sequences with a trained token; published code counts empty ones.
    """
    mask = token_scale != 0
    require_known("behavior_logprobs", behavior_logprobs, mask)
    difference = log_ratio(logprobs, behavior_logprobs.detach(), mask)
    advantages = selected(advantages, mask)
    bounded = difference.clamp(-clip_low, clip_high)
    pessimistic = torch.where(advantages >= 0, torch.minimum(difference, bounded), torch.maximum(difference, bounded))
    ratio = at_level(pessimistic, sequence_ids, mask, "geometric").exp()
    return LossOutput(
        loss=-(token_scale * advantages * ratio).sum(),
        metrics={
            "clip_count": (mask & (pessimistic != difference)).sum().to(logprobs.dtype),
            **mismatch_metrics(logprobs, behavior_logprobs, mask),
        },
    )
