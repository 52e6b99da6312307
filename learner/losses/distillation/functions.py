"""Distillation: what a teacher says of the policy's tokens, or of whole distributions."""

from __future__ import annotations

import torch
from torch import Tensor

from learner.losses.output import LossOutput, selected
from learner.ratios import log_ratio, mismatch_metrics, require_known


def on_policy_distillation(
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    teacher_logprobs: Tensor,
    token_scale: Tensor,
    *,
    max_fall: float = 0.2,
) -> LossOutput:
    """Policy gradient of the reverse KL to the teacher, token by token, without return-to-go.

    A = teacher_logprobs - logprobs, q = exp(logprobs - behavior_logprobs), both without gradient in A
    loss = -sum(token_scale * keep * A * q),  keep = exp(logprobs) - exp(behavior_logprobs) >= -max_fall

    Args:
        logprobs: [N] nats, policy being trained; the only input that carries gradient.
        behavior_logprobs: [N] nats, policy that sampled the token.
        teacher_logprobs: [N] nats, frozen teacher on the same token.
        token_scale: [N] factor of each token, global denominators divided out; 0 takes a token out altogether.

    Returns:
        Metrics kl_sum (nats, policy minus teacher log-prob), clip_count (tokens left out) and those of
        `mismatch_metrics`.

    Raises:
        ValueError: behaviour or teacher log-probs unknown for a selected token.

    Source: on-policy distillation as in prime-rl, whose pull to the sampling policy is a second term
    `squared_log_ratio` of weight 2e-3.
    """
    mask = token_scale != 0
    require_known("behavior_logprobs", behavior_logprobs, mask)
    require_known("teacher_logprobs", teacher_logprobs, mask)
    difference = log_ratio(logprobs, behavior_logprobs.detach(), mask)
    advantages = selected(teacher_logprobs - logprobs, mask)
    fall = selected(behavior_logprobs.exp() - logprobs.exp(), mask)
    kept = mask & (fall <= max_fall)
    loss = -(token_scale * torch.where(kept, advantages * difference.exp(), 0.0)).sum()
    return LossOutput(
        loss=loss,
        metrics={
            "kl_sum": -advantages.sum(),
            "clip_count": (mask & ~kept).sum().to(logprobs.dtype),
            **mismatch_metrics(logprobs, behavior_logprobs, mask),
        },
    )


def teacher_divergence(divergence: Tensor, token_scale: Tensor) -> LossOutput:
    """Mean of the divergence between teacher and policy over the whole vocabulary.

    loss = sum(token_scale * divergence), see `learner.logprobs.vocabulary_divergence`

    Args:
        divergence: [N] nats, with gradient.
        token_scale: [N] factor of each token, global denominators divided out; 0 takes a token out altogether.

    Returns:
        Metric kl_sum (nats).

    Source: GKD, arXiv:2306.13649.
    """
    chosen = torch.where(token_scale != 0, divergence, 0.0)
    return LossOutput(loss=(token_scale * chosen).sum(), metrics={"kl_sum": chosen.detach().sum()})


DISTILLATION_LOSSES = (on_policy_distillation, teacher_divergence)
