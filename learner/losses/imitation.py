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
    token_weight: Literal["none", "phi", "probability"] = "none",
) -> LossOutput:
    """Cross-entropy, optionally weighted per token by the current probability p of the token.

    loss = -sum(token_scale * w(p) * logprobs),  w = 1 (none), p*(1-p) (phi) or p (probability), without gradient

    Plain imitation is dominated by the tokens the policy finds least likely. phi leaves alone what the policy already
    does and what is foreign to it, and teaches what it is undecided about.

    Args:
        logprobs: [N] nats, policy being trained; the only input that carries gradient.
        token_scale: [N] factor of each token, global denominators divided out; 0 takes a token out altogether.

    Returns:
        Metrics nll_sum (nats, unweighted) and token_weight_sum.

    Raises:
        ValueError: unknown token_weight.

    Source: phi and probability weights, CHORD, arXiv:2508.11408.
    """
    mask = token_scale != 0
    selected = torch.where(mask, logprobs, 0.0)
    weight = torch.where(mask, _token_weight(selected.detach(), token_weight), 0.0)
    return LossOutput(
        loss=-(token_scale * weight * selected).sum(),
        metrics={"nll_sum": -selected.detach().sum(), "token_weight_sum": weight.sum()},
    )


def _token_weight(logprobs: Tensor, kind: str) -> Tensor:
    if kind == "none":
        return torch.ones_like(logprobs)
    probability = logprobs.exp()
    if kind == "probability":
        return probability
    if kind == "phi":
        return probability * -torch.expm1(logprobs)
    raise ValueError(f"token_weight={kind!r} is not one of none, phi, probability")
