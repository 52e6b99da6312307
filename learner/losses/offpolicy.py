"""Samples of older policies: truncated traces, the exact KL to the policy that sampled, the log-ratio as a value."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from learner.losses.output import LossOutput, selected
from learner.ratios import k3, log_ratio, mismatch_metrics, require_known, suffix_sums


def trace_weighted_policy_gradient(
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    advantages: Tensor,
    sequence_ids: Tensor,
    token_scale: Tensor,
    *,
    ratio_max: float = 1.0,
) -> LossOutput:
    """REINFORCE under the truncated ratios of the token and of all that follow: V-trace whose value is one constant.

    w_t = product over k >= t of min(q_k, ratio_max) without gradient, q = exp(logprobs - behavior_logprobs)
    loss = -sum(token_scale * w * A * logprobs)

    With a reward at the end, no discount and one value for all states of a sequence (the baseline inside A), V-trace's
    policy advantage rho_t (vs_{t+1} - V) is w_t A. The weight already holds rho: no correction belongs beside it.

    Args:
        logprobs: [N] nats, policy being trained; the only input that carries gradient.
        behavior_logprobs: [N] nats, policy that sampled the token.
        advantages: [N] reward units.
        sequence_ids: [N] equal for tokens of one sequence, which stand in their order.
        token_scale: [N] factor of each token, global denominators divided out; 0 takes a token out altogether.

    Returns:
        Metrics token_weight_sum and those of `mismatch_metrics`.

    Raises:
        ValueError: behaviour log-probs unknown for a selected token.

    Source: IMPALA, arXiv:1802.01561, section 4.1, both bounds equal.
    """
    mask = token_scale != 0
    require_known("behavior_logprobs", behavior_logprobs, mask)
    ratio = log_ratio(logprobs.detach(), behavior_logprobs.detach(), mask).exp()
    weight = torch.where(mask, suffix_sums(ratio.clamp(max=ratio_max).log(), sequence_ids, mask).exp(), 0.0)
    return LossOutput(
        loss=-(token_scale * weight * selected(advantages, mask) * torch.where(mask, logprobs, 0.0)).sum(),
        metrics={"token_weight_sum": weight.sum(), **mismatch_metrics(logprobs, behavior_logprobs, mask)},
    )


def behavior_kl(logprobs: Tensor, behavior_logprobs: Tensor, token_scale: Tensor) -> LossOutput:
    """KL(policy || policy that sampled) from the samples of the latter; exact in the mean, its gradient too.

    q = exp(logprobs - behavior_logprobs);  loss = sum(token_scale * q * k3(ln q)) = sum(token_scale * (1 - q + q ln q))

    Args, Raises: as `trace_weighted_policy_gradient`.

    Returns:
        Metrics kl_sum (nats) and those of `mismatch_metrics`.

    Source: the proximity term of MDPO, arXiv:2005.09814, which sums over all actions in its place.
    """
    mask = token_scale != 0
    require_known("behavior_logprobs", behavior_logprobs, mask)
    difference = log_ratio(logprobs, behavior_logprobs.detach(), mask)
    kl = difference.exp() * k3(difference)
    return LossOutput(
        loss=(token_scale * kl).sum(),
        metrics={"kl_sum": kl.detach().sum(), **mismatch_metrics(logprobs, behavior_logprobs, mask)},
    )


def log_ratio_regression(
    logprobs: Tensor, behavior_logprobs: Tensor, advantages: Tensor, token_scale: Tensor, *, temperature: float = 1.0
) -> LossOutput:
    """The log-ratio as the value of an action under the uniform policy, regressed on what the answer earned.

    Q = temperature * (logprobs - behavior_logprobs);  loss = sum(token_scale * (Q - A)^2)

    The method adds to A the successor's value, the mean over the vocabulary of the next state's log-ratios. It is 0
    where the sampling policy is the one being updated; on stale samples its distribution is not on record, so the
    value is left out.

    Args, Raises: as `trace_weighted_policy_gradient`; advantages: [N] the target of each token.

    Returns:
        Metrics of `mismatch_metrics`.

    Source: ROVER, tinnerhrhe/ROVER.
    """
    mask = token_scale != 0
    require_known("behavior_logprobs", behavior_logprobs, mask)
    value = temperature * log_ratio(logprobs, behavior_logprobs.detach(), mask)
    return LossOutput(
        loss=(token_scale * (value - selected(advantages, mask)).square()).sum(),
        metrics=mismatch_metrics(logprobs, behavior_logprobs, mask),
    )


OFF_POLICY_LOSSES: tuple[Callable[..., LossOutput], ...] = (
    trace_weighted_policy_gradient,
    behavior_kl,
    log_ratio_regression,
)
"""What `learner.losses.table` lists of this file."""
