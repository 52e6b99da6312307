"""Imitation: raising the likelihood of tokens as they are, whoever wrote them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from learner.losses.output import LossOutput


def negative_log_likelihood(
    logprobs: Tensor,
    token_scale: Tensor,
    *,
    token_weight: Literal["none", "phi", "probability", "power"] = "none",
    exponent: float = 0.0,
) -> LossOutput:
    """Cross-entropy, optionally weighted per token by the current probability p of the token.

    loss = -sum(token_scale * w(p) * logprobs),  w = 1 (none), p*(1-p) (phi), p (probability) or
    p^exponent (power), without gradient

    Plain imitation is dominated by the tokens the policy finds least likely. phi leaves alone what the policy already
    does and what is foreign to it, and teaches what it is undecided about.

    Args:
        logprobs: [N] nats, policy being trained; the only input that carries gradient.
        token_scale: [N] factor of each token, global denominators divided out; 0 takes a token out altogether.

    Returns:
        Metrics nll_sum (nats, unweighted) and token_weight_sum.

    Raises:
        ValueError: unknown token_weight.

    Source: phi and probability weights, CHORD, arXiv:2508.11408; the power is the positive part of Diversity or
    Precision, arXiv:2512.22955, second-hand and not confirmed.
    """
    mask = token_scale != 0
    selected = torch.where(mask, logprobs, 0.0)
    weight = torch.where(mask, _token_weight(selected.detach(), token_weight, exponent), 0.0)
    return LossOutput(
        loss=-(token_scale * weight * selected).sum(),
        metrics={"nll_sum": -selected.detach().sum(), "token_weight_sum": weight.sum()},
    )


def _token_weight(logprobs: Tensor, kind: str, exponent: float) -> Tensor:
    if kind == "none":
        return torch.ones_like(logprobs)
    probability = logprobs.exp()
    if kind == "probability":
        return probability
    if kind == "phi":
        return probability * -torch.expm1(logprobs)
    if kind == "power":
        return (exponent * logprobs.clamp(min=-20.0)).exp()
    raise ValueError(f"token_weight={kind!r} is not one of none, phi, probability, power")
