"""Reinforcement learning as matching a target distribution: the reference tilted by the score."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from learner.losses.group import Members, known_log_ratio
from learner.losses.output import LossOutput
from learner.ratios import MAX_LOG_RATIO, mismatch_metrics

SLOPES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "kl": lambda log_t: -torch.exp(-log_t),
    "reverse_kl": lambda log_t: log_t + 1.0,
    "js": lambda log_t: math.log(2.0) - F.softplus(-log_t),
    "tv": lambda log_t: 0.5 * log_t.sign(),
    "chi2": lambda log_t: 1.0 - torch.exp(-2.0 * log_t),
    "reverse_chi2": lambda log_t: 2.0 * torch.expm1(log_t),
}
"""Of ln t, t = policy / target, the slope f'(t) of the divergence of that name: "kl" is KL(target || policy)."""


def tilted_target_gradient(
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    reference_logprobs: Tensor,
    advantages: Tensor,
    sequence_ids: Tensor,
    group_ids: Tensor,
    token_scale: Tensor,
    *,
    beta: float = 1.0,
    divergence: str = "reverse_kl",
    max_slope: float = 100.0,
) -> LossOutput:
    """Gradient of a divergence between the policy and the optimum of KL-regularised RL, from samples of any policy.

    target = reference * exp(A / beta) / Z, ln t = ln policy - ln target, q = policy / behaviour, all of sequences
    Z = mean over the group of (reference / behaviour) * exp(A / beta)
    loss = sum(share * q * (f'(t) - baseline) * sum of logprobs),  only the last factor with gradient

    The baseline is the group's mean slope, weighted by q. "reverse_kl" is RL with a KL penalty; "kl" the distributional
    policy gradient. Slopes beyond +-max_slope, as that of "kl" where the policy has all but lost a sequence, are cut.

    Args:
        logprobs: [N] nats, policy being trained; the only input that carries gradient.
        behavior_logprobs, reference_logprobs: [N] nats of the policy that sampled, of the frozen reference.
        advantages: [N] scores, reward units.
        sequence_ids, group_ids: [N] equal for tokens of one sequence, of one group.
        token_scale: [N] factor of each token, global denominators divided out; 0 takes a token out altogether.
        beta: reward units per nat.

    Returns:
        Metrics target_kl_sum (nats, KL(target || policy) of sequences, weighted by their tokens) and those of
        `mismatch_metrics`.

    Raises:
        ValueError: unknown divergence; log-probs unknown for a selected token.

    Source: f-DPG, arXiv:2302.08215; generation with distributional control, arXiv:2012.11635.
    """
    if divergence not in SLOPES:
        raise ValueError(f"divergence={divergence!r} is not one of {', '.join(SLOPES)}")
    members = Members(sequence_ids, group_ids, token_scale)
    total = members.sum(logprobs)
    log_q = members.sum(known_log_ratio("behavior_logprobs", logprobs, behavior_logprobs, members.mask)).detach()
    reference = members.sum(known_log_ratio("reference_logprobs", logprobs, reference_logprobs, members.mask)).detach()
    tilted = (log_q - reference + members.of_sequence(advantages) / beta).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    target_weight = tilted.exp() / members.group_mean(tilted.exp())
    log_q = log_q.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    log_t = (log_q - target_weight.log()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    slope = SLOPES[divergence](log_t).clamp(-max_slope, max_slope)
    baseline = members.group_sum(log_q.exp() * slope) / members.group_sum(log_q.exp())
    distance = members.length * target_weight * -log_t
    return LossOutput(
        loss=(members.share * log_q.exp() * (slope - baseline) * total).sum(),
        metrics={"target_kl_sum": distance.sum(), **mismatch_metrics(logprobs, behavior_logprobs, members.mask)},
    )


DISTRIBUTION_LOSSES: tuple[Callable[..., LossOutput], ...] = (tilted_target_gradient,)
"""What `learner.losses.table` lists of this file."""
