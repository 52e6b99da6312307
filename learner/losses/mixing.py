"""Own and expert tokens under weights that follow the entropy, and imitation as one-step reinforcement learning."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from learner.losses.output import LossOutput, selected


def entropy_weighted_likelihood(
    logprobs: Tensor, mean_entropy: Tensor, token_scale: Tensor, *, factor: float = 0.5
) -> LossOutput:
    """Imitation that counts less, the less certain the policy is.

    loss = -sum(token_scale * factor * exp(-H) * logprobs),  H without gradient

    Args:
        logprobs: [N] nats, policy being trained; the only input that carries gradient.
        mean_entropy: [N] nats, H, the mean over the term's tokens of the whole update.
        token_scale: [N] factor of each token, global denominators divided out; 0 takes a token out altogether.

    Returns:
        Metrics nll_sum (nats, unweighted) and token_weight_sum.

    Source: SRFT, arXiv:2506.19767; which tokens its entropy is the mean of is our reading.
    """
    mask = token_scale != 0
    taken = torch.where(mask, logprobs, 0.0)
    weight = torch.where(mask, factor * torch.exp(-selected(mean_entropy, mask)), 0.0)
    return LossOutput(
        loss=-(token_scale * weight * taken).sum(),
        metrics={"nll_sum": -taken.detach().sum(), "token_weight_sum": weight.sum()},
    )


def entropy_weighted_policy_gradient(
    logprobs: Tensor, advantages: Tensor, mean_entropy: Tensor, token_scale: Tensor, *, factor: float = 0.1
) -> LossOutput:
    """REINFORCE in which successes count more, the less certain the policy is; failures keep their weight.

    w = factor * exp(H) where A > 0, 1 elsewhere;  loss = -sum(token_scale * w * A * logprobs)

    Args, Returns, Source: as `entropy_weighted_likelihood`; advantages: [N] reward units.
    """
    mask = token_scale != 0
    taken, advantages = torch.where(mask, logprobs, 0.0), selected(advantages, mask)
    weight = torch.where(advantages > 0, factor * torch.exp(selected(mean_entropy, mask)), 1.0)
    weight = torch.where(mask, weight, 0.0)
    return LossOutput(
        loss=-(token_scale * weight * advantages * taken).sum(),
        metrics={"nll_sum": -taken.detach().sum(), "token_weight_sum": weight.sum()},
    )


def one_token_rollout(logprobs: Tensor, hits: Tensor, token_scale: Tensor, *, miss_reward: float) -> LossOutput:
    """Each expert token as an episode of one step: what the policy draws there earns 1 if it is the expert's token.

    h = hits;  loss = -sum(token_scale * (h * ln P + (1 - h) * miss_reward * ln(1 - P))),  P = exp(logprobs)

    Drawn tokens that miss enter through their expectation given that they miss, whose log-prob gradient is that of
    ln(1 - P): the same gradient in the mean as with each drawn token by itself, and less noise.

    Args: as `entropy_weighted_likelihood`.
        hits: [N] share of the draws that are the token itself.

    Returns:
        Metrics nll_sum (nats) and token_weight_sum (of the hits).

    Source: One-Token Rollout, arXiv:2509.26313, second-hand; number of draws and reward of a miss are not confirmed.
    """
    mask = token_scale != 0
    taken, hits = torch.where(mask, logprobs, -1.0), torch.where(mask, hits, 0.0).detach()
    # At P = 1 nothing misses; one float32 step below it the logarithm exists.
    missed = torch.log(-torch.expm1(taken.clamp(max=-1e-6))) * miss_reward
    value = hits * taken + torch.where(hits < 1.0, (1.0 - hits) * missed, 0.0)
    return LossOutput(
        loss=-(token_scale * value).sum(),
        metrics={
            "nll_sum": -torch.where(mask, taken, 0.0).detach().sum(),
            "token_weight_sum": torch.where(mask, hits, 0.0).sum(),
        },
    )


MIXING_LOSSES: tuple[Callable[..., LossOutput], ...] = (
    entropy_weighted_likelihood,
    entropy_weighted_policy_gradient,
    one_token_rollout,
)
"""What `learner.losses.table` lists of this file."""
