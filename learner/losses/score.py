"""Score-function losses: a weight without gradient times advantage times log-prob."""

from __future__ import annotations

import torch
from torch import Tensor

from learner.losses.output import LossOutput, selected
from learner.ratios import at_level, log_ratio, mismatch_metrics, require_known


def policy_gradient(logprobs: Tensor, advantages: Tensor, token_scale: Tensor) -> LossOutput:
    """REINFORCE: right for samples of the policy itself; for others a filtered or weighted imitation.

    loss = -sum(token_scale * A * logprobs)

    Args:
        logprobs: [N] nats, policy being trained; the only input that carries gradient.
        advantages: [N] reward units.
        token_scale: [N] factor of each token, global denominators divided out; 0 takes a token out altogether.

    Returns:
        Metric nll_sum (nats, unweighted).
    """
    mask = token_scale != 0
    taken = torch.where(mask, logprobs, 0.0)
    return LossOutput(
        loss=-(token_scale * selected(advantages, mask) * taken).sum(), metrics={"nll_sum": -taken.detach().sum()}
    )


def weighted_policy_gradient(
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    advantages: Tensor,
    sequence_ids: Tensor,
    token_scale: Tensor,
    *,
    ratio_min: float = 0.0,
    ratio_max: float = 2.0,
    level: str = "token",
    positive_unweighted: bool = False,
) -> LossOutput:
    """REINFORCE under a bounded importance ratio; every token keeps a gradient.

    w = clip(r, ratio_min, ratio_max) without gradient;  loss = -sum(token_scale * w * A * logprobs)

    CISPO: bounds 1 - low and 1 + high (some code takes the upper one as an absolute cap). TOPR: bounds 0 and 1,
    positive_unweighted, level product in the paper, token in its code.

    Args:
        logprobs: [N] nats, policy being trained; the only input that carries gradient.
        behavior_logprobs: [N] nats, policy that sampled the token.
        advantages: [N] reward units.
        sequence_ids: [N] equal for tokens of one sequence.
        token_scale: [N] factor of each token, global denominators divided out; 0 takes a token out altogether.
        level: the ratio of the token, or the geometric mean or product over its sequence.
        positive_unweighted: w = 1 where A > 0.

    Returns:
        Metrics clip_count (tokens whose weight met a bound) and those of `mismatch_metrics`.

    Raises:
        ValueError: behaviour log-probs unknown for a selected token; unknown level.

    Source: CISPO, arXiv:2506.13585; TOPR, arXiv:2503.14286.
    """
    mask = token_scale != 0
    require_known("behavior_logprobs", behavior_logprobs, mask)
    ratio = at_level(log_ratio(logprobs.detach(), behavior_logprobs.detach(), mask), sequence_ids, mask, level).exp()
    advantages = selected(advantages, mask)
    weight = ratio.clamp(ratio_min, ratio_max)
    if positive_unweighted:
        weight = torch.where(advantages > 0, 1.0, weight)
    bounded = mask & ((ratio < ratio_min) | (ratio > ratio_max))
    return LossOutput(
        loss=-(token_scale * weight * advantages * torch.where(mask, logprobs, 0.0)).sum(),
        metrics={
            "clip_count": bounded.sum().to(logprobs.dtype),
            **mismatch_metrics(logprobs, behavior_logprobs, mask),
        },
    )


def divergence_masked_policy_gradient(
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    advantages: Tensor,
    token_scale: Tensor,
    *,
    max_rise: float = 0.2,
    max_fall: float = 0.2,
    ratio_max: float = 20.0,
    divergence: str = "tv",
) -> LossOutput:
    """Leaves out tokens whose probability, not ratio, has already moved far the way the advantage pulls.

    p = exp(logprobs), m = exp(behavior_logprobs)
    D = p - m (tv) or sign(p - m) * KL of two outcomes, m ln(m/p) + (1-m) ln((1-m)/(1-p)) (kl)
    kept: D <= max_rise where A > 0, D >= -max_fall elsewhere
    loss = -sum over kept tokens of  token_scale * min(r, ratio_max) * A * logprobs, the weight without gradient

    A ratio bound hits unlikely tokens hardest; these, divergences of the token against all others, do not.

    Args, Raises: as `clipped_surrogate`; also ValueError for an unknown divergence.

    Returns:
        Metrics clip_count (tokens left out) and those of `mismatch_metrics`.

    Source: DPPO, arXiv:2602.04879, the forms of two outcomes; of the KL the order of its arguments is our reading.
    """
    mask = token_scale != 0
    require_known("behavior_logprobs", behavior_logprobs, mask)
    taken = torch.where(mask, logprobs, 0.0)
    behavior = selected(behavior_logprobs, mask)
    advantages = selected(advantages, mask)
    moved = _moved(taken.detach(), behavior, divergence)
    keep = mask & torch.where(advantages > 0, moved <= max_rise, moved >= -max_fall)
    weight = log_ratio(taken.detach(), behavior, mask).exp().clamp(max=ratio_max)
    return LossOutput(
        loss=-(token_scale * torch.where(keep, weight * advantages * taken, 0.0)).sum(),
        metrics={
            "clip_count": (mask & ~keep).sum().to(logprobs.dtype),
            **mismatch_metrics(logprobs, behavior_logprobs, mask),
        },
    )


def _moved(logprobs: Tensor, behavior_logprobs: Tensor, divergence: str) -> Tensor:
    """[N] how far a token's probability has gone up (above 0) or down: probability (tv) or nats (kl)."""
    change = logprobs.exp() - behavior_logprobs.exp()
    if divergence == "tv":
        return change
    if divergence != "kl":
        raise ValueError(f"divergence={divergence!r} is not one of tv, kl")
    # At probability 1 the other outcome has none; one float32 step below it its logarithm exists.
    policy, behavior = logprobs.clamp(max=-1e-6), behavior_logprobs.clamp(max=-1e-6)
    others = torch.log(-torch.expm1(behavior)) - torch.log(-torch.expm1(policy))
    return change.sign() * (behavior.exp() * (behavior - policy) - torch.expm1(behavior) * others)
