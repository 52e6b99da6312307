"""Advantages on samples of others: expert answers without, and replayed ones with recorded log-probs."""

from __future__ import annotations

import torch
from torch import Tensor

from learner.losses.output import LossOutput, selected
from learner.ratios import log_ratio, mismatch_metrics, require_known


def shaped_likelihood(
    logprobs: Tensor, advantages: Tensor, token_scale: Tensor, *, shaping: float | None = 0.1
) -> LossOutput:
    """The expert's probability is taken as 1, and the ratio shaped so that unlikely tokens keep a gradient.

    P = exp(logprobs);  loss = -sum(token_scale * A * P / (P + shaping)), with gradient through the shaping; without
    shaping P itself

    Args:
        logprobs: [N] nats, policy being trained; the only input that carries gradient.
        advantages: [N] reward units.
        token_scale: [N] factor of each token, global denominators divided out; 0 takes a token out altogether.

    Returns:
        Metrics nll_sum (nats) and token_weight_sum (of P / (P + shaping)).

    Source: LUFFY, arXiv:2504.14945; without shaping SRFT, arXiv:2506.19767.
    """
    mask = token_scale != 0
    taken = torch.where(mask, logprobs, 0.0)
    shaped = torch.where(mask, _shaped(taken.exp(), shaping), 0.0)
    return LossOutput(
        loss=-(token_scale * selected(advantages, mask) * shaped).sum(),
        metrics={"nll_sum": -taken.detach().sum(), "token_weight_sum": shaped.detach().sum()},
    )


def shaped_ratio(
    logprobs: Tensor, behavior_logprobs: Tensor, advantages: Tensor, token_scale: Tensor, *, shaping: float = 0.1
) -> LossOutput:
    """The same shaping on the ratio to a recorded log-prob, for replayed answers of the policy itself.

    x = exp(logprobs - behavior_logprobs);  loss = -sum(token_scale * A * x / (x + shaping))

    Args: as `shaped_likelihood`.
        behavior_logprobs: [N] nats, as recorded when the token was sampled.

    Returns:
        Metrics of `mismatch_metrics`.

    Raises:
        ValueError: behaviour log-probs unknown for a selected token.

    Source: ExGRPO, arXiv:2510.02245.
    """
    mask = token_scale != 0
    require_known("behavior_logprobs", behavior_logprobs, mask)
    ratio = log_ratio(logprobs, behavior_logprobs.detach(), mask).exp()
    return LossOutput(
        loss=-(token_scale * selected(advantages, mask) * _shaped(ratio, shaping)).sum(),
        metrics=mismatch_metrics(logprobs, behavior_logprobs, mask),
    )


def mixture_ratio(
    logprobs: Tensor, proximal_logprobs: Tensor, advantages: Tensor, token_scale: Tensor, *, exploration: float = 0.5
) -> LossOutput:
    """A ratio to a mixture stands in for the expert's unknown probabilities; unlikely tokens count more.

    P = exp(logprobs), p = exp(proximal_logprobs), omega = (p + 1) / 2, m = 2 P / (p + omega), at most 4
    loss = -sum(token_scale * A * (1 - P)^exploration * m), the power without gradient

    Args: as `shaped_likelihood`.
        proximal_logprobs: [N] nats, policy at the start of the update.

    Returns:
        Metrics nll_sum (nats) and ratio_sum.

    Source: RL-PLUS, arXiv:2508.00222; its code puts 1 where the paper has the uniform policy, and so does this.
    """
    mask = token_scale != 0
    taken = torch.where(mask, logprobs, 0.0)
    proximal = selected(proximal_logprobs, mask).exp()
    ratio = torch.where(mask, 2.0 * taken.exp() / (proximal + 0.5 * (proximal + 1.0)), 0.0)
    unlikely = (-torch.expm1(taken.detach())).clamp(min=0.0) ** exploration
    return LossOutput(
        loss=-(token_scale * selected(advantages, mask) * unlikely * ratio).sum(),
        metrics={"nll_sum": -taken.detach().sum(), "ratio_sum": ratio.detach().sum()},
    )


def _shaped(ratio: Tensor, shaping: float | None) -> Tensor:
    return ratio if shaping is None else ratio / (ratio + shaping)
