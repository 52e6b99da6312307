"""What a critic learns: squared errors, cross-entropies with a distribution around the target, a bound on features."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def squared_value_loss(
    values: Tensor, targets: Tensor, token_scale: Tensor, *, old_values: Tensor | None = None, clip: float | None = None
) -> Tensor:
    """Half the squared error, the larger of those with and without a bound on how far the value moved.

    loss = sum(token_scale * max((V - G)^2, (V_old + clamp(V - V_old, -clip, clip) - G)^2) / 2)

    Args:
        values: [N] reward units, with gradient; targets: [N].
        token_scale: [N] factor of each token, global denominators divided out.
        old_values: [N] at the start of the update; goes with `clip`. They bound nothing in the first step from them.

    Source: the value clip of PPO implementations.
    """
    errors = (values - targets).square()
    if clip is not None and old_values is not None:
        bounded = old_values + (values - old_values).clamp(-clip, clip)
        errors = torch.maximum(errors, (bounded - targets).square())
    return (token_scale * 0.5 * errors).sum()


def categorical_value_loss(logits: Tensor, probabilities: Tensor, token_scale: Tensor) -> Tensor:
    """Cross-entropy of the critic's distribution with the target's.

    Args:
        logits: [N, K], with gradient; probabilities: [N, K].
        token_scale: [N] factor of each token, global denominators divided out.
    """
    return -(token_scale * (probabilities * logits.log_softmax(-1)).sum(-1)).sum()


def hl_gauss(targets: Tensor, *, low: float, high: float, bins: int, width_ratio: float = 0.75) -> Tensor:
    """[N, bins] mass of a Gaussian around each target, inside `bins` equal bins of [low, high].

    Its deviation is `width_ratio` bins. Targets outside count as the nearest end.

    Source: Stop Regressing, arXiv:2403.03950.
    """
    edges = torch.linspace(low, high, bins + 1, dtype=targets.dtype, device=targets.device)
    deviation = width_ratio * (high - low) / bins
    scaled = (edges - targets.clamp(low, high)[:, None]) / (deviation * math.sqrt(2.0))
    below = torch.special.erf(scaled)
    return (below[:, 1:] - below[:, :-1]) / (below[:, -1:] - below[:, :1])


def two_hot(targets: Tensor, *, low: float, high: float, bins: int) -> Tensor:
    """[N, bins] mass on the two of `bins` equally spaced points of [low, high] around each target, with its mean.

    Targets outside count as the nearest end.
    """
    place = (targets.clamp(low, high) - low) / (high - low) * (bins - 1)
    lower = place.floor().clamp(max=bins - 2)
    upper_mass = (place - lower)[:, None]
    first = F.one_hot(lower.long(), bins).to(targets.dtype)
    return first * (1.0 - upper_mass) + first.roll(1, -1) * upper_mass


def support(*, low: float, high: float, bins: int, ends_included: bool, device: torch.device) -> Tensor:
    """[bins] the values the outputs stand for: points of `two_hot`, or centres of the bins of `hl_gauss`."""
    if ends_included:
        return torch.linspace(low, high, bins, device=device)
    half = (high - low) / bins / 2
    return torch.linspace(low + half, high - half, bins, device=device)


def feature_penalty(
    features: Tensor,
    following: Tensor,
    rewards: Tensor,
    squared_head_norm: Tensor,
    pair_scale: Tensor,
    *,
    discount: float,
) -> Tensor:
    """Punishes features of successive states that point the same way more than the Bellman equation allows.

    bound = (|phi|^2 + discount^2 |phi'|^2 - R^2 / |w|^2) / (2 discount |phi| |phi'|), without gradient
    loss = sum(pair_scale * relu(cos(phi, phi') - bound)), the gradient through phi alone

    Args:
        features: [P, H] before a token, with gradient; following: [P, H] before the next one.
        rewards: [P] of the token between them; squared_head_norm: [] |w|^2 of the value head.
        pair_scale: [P] factor of each pair.

    Source: BEER, sweetice/BEER-ICLR2024.
    """
    following = following.detach()
    norms, next_norms = features.detach().norm(dim=-1), following.norm(dim=-1)
    numerator = (
        norms.square() + discount**2 * next_norms.square() - rewards.square() / squared_head_norm.clamp_min(1e-8)
    )
    bound = numerator / (2.0 * discount * norms * next_norms).clamp_min(1e-8)
    return (pair_scale * (F.cosine_similarity(features, following, dim=-1) - bound).relu()).sum()
