"""Importance ratios, KL estimators and how far two policies are apart. Pure functions of flat tensors [N]."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Nats. exp of a larger difference is a broken number, not a weight; beyond it the gradient is 0."""


def log_ratio(logprobs: Tensor, other_logprobs: Tensor, mask: Tensor) -> Tensor:
    """[N] logprobs - other_logprobs within +-MAX_LOG_RATIO; exactly 0, without gradient, outside the mask.

    Masked inputs may be NaN: they are replaced before anything is computed with them.

    Args:
        logprobs, other_logprobs: [N] nats of the same tokens under two policies.
        mask: [N] bool.
    """
    difference = torch.where(mask, logprobs, 0.0) - torch.where(mask, other_logprobs, 0.0)
    return difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def sequence_sums(values: Tensor, sequence_ids: Tensor, mask: Tensor) -> Tensor:
    """[N] the sum over the masked tokens of the token's own sequence, on each of its tokens; 0 outside the mask.

    Exact however tokens are packed, as long as a sequence is not split between two calls.

    Args:
        values: [N].
        sequence_ids: [N] equal for tokens of one sequence; anything outside the mask.
        mask: [N] bool.
    """
    ids, index = torch.unique(torch.where(mask, sequence_ids, -1), return_inverse=True)
    totals = values.new_zeros(len(ids)).index_add(0, index, torch.where(mask, values, 0.0))
    return torch.where(mask, totals[index], 0.0)


def suffix_sums(values: Tensor, sequence_ids: Tensor, mask: Tensor) -> Tensor:
    """[N] the sum over the token itself and the masked tokens behind it in its sequence; 0 outside the mask.

    Args: as `sequence_sums`; the tokens of a sequence stand in their order, those of others may lie between them.
    """
    ids, index = torch.unique(torch.where(mask, sequence_ids, -1), return_inverse=True)
    taken = torch.where(mask, values, 0.0).double()  # differences of long running sums
    order = torch.argsort(index, stable=True)
    running = torch.zeros_like(taken).index_copy(0, order, taken[order].cumsum(0))
    ends = taken.new_zeros(len(ids)).index_add(0, index, taken).cumsum(0)
    return torch.where(mask, ends[index] - running + taken, 0.0).to(values.dtype)


def at_level(log_ratio: Tensor, sequence_ids: Tensor, mask: Tensor, level: str) -> Tensor:
    """[N] a token's log-ratio as it is (token), the mean (geometric) or the sum (product) over its sequence.

    Raises:
        ValueError: unknown level.
    """
    if level == "token":
        return log_ratio
    total = sequence_sums(log_ratio, sequence_ids, mask)
    if level == "product":
        return total.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if level == "geometric":
        return total / sequence_sums(mask.to(total.dtype), sequence_ids, mask).clamp(min=1.0)
    raise ValueError(f"level={level!r} is not one of token, geometric, product")


def require_known(name: str, logprobs: Tensor, mask: Tensor) -> None:
    """Refuses log-probs that are unknown (NaN) or infinite where the mask is set.

    Raises:
        ValueError: with the number of such tokens.
    """
    num_unknown = int((mask & ~torch.isfinite(logprobs)).sum())
    if num_unknown:
        raise ValueError(
            f"{name} are unknown (NaN) or infinite for {num_unknown} of {int(mask.sum())} trained tokens, so their "
            "ratio does not exist. Mask these tokens, or use a loss that does not read them."
        )


def k1(log_ratio: Tensor) -> Tensor:
    """d = log pi - log ref. Unbiased for KL(pi || ref) on samples of pi; as a loss its gradient carries no signal."""
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """d^2 / 2. Biased value, but on samples of pi its gradient is that of KL(pi || ref)."""
    return 0.5 * log_ratio.square()


def k3(log_ratio: Tensor) -> Tensor:
    """exp(-d) + d - 1: unbiased and never negative; its gradient as a loss is that of the opposite direction."""
    return torch.expm1(-log_ratio) + log_ratio


def k3_value_k2_gradient(log_ratio: Tensor) -> Tensor:
    """k3 to look at, k2 to descend."""
    quadratic = k2(log_ratio)
    return quadratic - quadratic.detach() + k3(log_ratio).detach()


KL_ESTIMATORS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "k1": k1,
    "k2": k2,
    "k3": k3,
    "k3+": k3_value_k2_gradient,
}
"""[N] log-ratio d = log pi - log ref of tokens sampled from pi, to [N] nats. Source: J. Schulman, Approximating KL
Divergence, 2020 (k1-k3)."""


def effective_sample_fraction(total: float, total_of_squares: float, count: int) -> float:
    """(sum w)^2 / (n sum w^2): the share of n weighted samples that n equal weights would need for the same variance.

    1 for equal weights, 1 / n when one weight outweighs all others. Takes sums, because sums of parts add up.

    Raises:
        ValueError: count < 1, or no weight differs from 0.
    """
    if count < 1 or not total_of_squares > 0:
        raise ValueError(f"needs weights other than 0, got count={count}, sum of squares={total_of_squares}")
    return total**2 / (count * total_of_squares)


def mismatch_metrics(logprobs: Tensor, behavior_logprobs: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """How far the policy being trained is from the one that sampled, over the masked tokens, without gradient.

    Right after a weight update and without staleness this is the numerical mismatch of engine and learner.

    Returns:
        Named as in `LossOutput.metrics`: mismatch_sum, mismatch_max (nats, absolute), ratio_sum, squared_ratio_sum.
    """
    with torch.no_grad():
        difference = log_ratio(logprobs, behavior_logprobs, mask)
        ratio = torch.where(mask, difference.exp(), 0.0)
        distance = difference.abs()
        return {
            "mismatch_sum": distance.sum(),
            "mismatch_max": distance.max() if distance.numel() else distance.sum(),
            "ratio_sum": ratio.sum(),
            "squared_ratio_sum": ratio.square().sum(),
        }
