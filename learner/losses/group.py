"""Losses that compare the members of a group. A group lies in one micro-batch, so its statistics are complete."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from learner.losses.output import LossOutput
from learner.ratios import log_ratio, mismatch_metrics, require_known


class Members:
    """The S sequences with a selected token, seen as members of their groups.

    Attributes:
        share: [S] the sequence's weight, the sum of its tokens' scales. With aggregation "sequence" all are equal and
            a loss over members is a mean over sequences, a loss over groups one over groups that counts their size.
        length: [S] selected tokens.
        same_group: [S, S] 1 where two sequences belong to one group, also on the diagonal.
    """

    def __init__(self, sequence_ids: Tensor, group_ids: Tensor, token_scale: Tensor) -> None:
        self.mask = token_scale != 0
        ids, self._index = torch.unique(sequence_ids[self.mask], return_inverse=True)
        self._count = len(ids)
        self.share = self.sum(token_scale)
        self.length = self.sum(torch.ones_like(token_scale))
        groups = self.of_sequence(group_ids)
        self.same_group = (groups[:, None] == groups[None, :]).to(token_scale.dtype)

    def sum(self, values: Tensor) -> Tensor:
        """[S] over each sequence's selected tokens, of [N]; other tokens may be NaN."""
        return values.new_zeros(self._count).index_add(0, self._index, values[self.mask])

    def of_sequence(self, values: Tensor) -> Tensor:
        """[S] of [N] values that are equal on all tokens of a sequence; without gradient."""
        return values.new_zeros(self._count).index_copy(0, self._index, values[self.mask]).detach()

    def group_sum(self, values: Tensor) -> Tensor:
        """[S] the sum of [S] values over the members of each sequence's group."""
        return self.same_group @ values

    def group_mean(self, values: Tensor) -> Tensor:
        """[S] the mean over the members of each sequence's group."""
        return self.group_sum(values) / self.size

    @property
    def size(self) -> Tensor:
        """[S] members of the sequence's group."""
        return self.same_group.sum(1)

    def mean_over_pairs(self, values: Tensor, pairs: Tensor) -> Tensor:
        """[S] the mean of [S, S] values over the chosen ordered pairs of each sequence's group; 0 without a pair.

        Args:
            pairs: [S, S] bool, only within groups.
        """
        chosen = pairs.to(values.dtype)
        total = self.group_sum(torch.where(pairs, values, 0.0).sum(1))
        return total / self.group_sum(chosen.sum(1)).clamp(min=1.0)


def known_log_ratio(name: str, logprobs: Tensor, others: Tensor, mask: Tensor) -> Tensor:
    """[N] as `log_ratio`, refusing unknown log-probs of the other policy."""
    require_known(name, others, mask)
    return log_ratio(logprobs, others.detach(), mask)


def group_regression(
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    advantages: Tensor,
    sequence_ids: Tensor,
    group_ids: Tensor,
    token_scale: Tensor,
    *,
    beta: float = 0.1,
) -> LossOutput:
    """Regression of the centred log-ratio of a sequence on its centred score.

    D = sum over the sequence of logprobs - behavior_logprobs
    loss = sum(share * G / (2 (G - 1)) * (beta * D - stop(mean of beta * D in the group) - A)^2)

    With aggregation "sequence" and groups of one size G: the mean over groups of sum(...)^2 / (2 (G - 1)). Valid for
    samples of any policy that its log-probs are known of. A group of one teaches nothing.

    Args:
        logprobs: [N] nats, policy being trained; the only input that carries gradient.
        behavior_logprobs: [N] nats; published with the policy at the start of the update (ratio_to "proximal").
        advantages: [N] reward units, centred in the group.
        sequence_ids, group_ids: [N] equal for tokens of one sequence, of one group.
        token_scale: [N] factor of each token, global denominators divided out; 0 takes a token out altogether.

    Returns:
        Metrics of `mismatch_metrics`.

    Raises:
        ValueError: log-probs of the other policy unknown for a selected token.

    Source: GVPO, arXiv:2504.19599.
    """
    members = Members(sequence_ids, group_ids, token_scale)
    scaled = beta * members.sum(known_log_ratio("behavior_logprobs", logprobs, behavior_logprobs, members.mask))
    residual = scaled - members.group_mean(scaled).detach() - members.of_sequence(advantages)
    others = members.size - 1.0
    factor = torch.where(others > 0, members.size / (2.0 * others.clamp(min=1.0)), 0.0)
    return LossOutput(
        loss=(members.share * factor * residual.square()).sum(),
        metrics=mismatch_metrics(logprobs, behavior_logprobs, members.mask),
    )


def contrastive_policy_gradient(
    logprobs: Tensor,
    reference_logprobs: Tensor,
    advantages: Tensor,
    sequence_ids: Tensor,
    group_ids: Tensor,
    token_scale: Tensor,
    *,
    beta: float = 0.5,
) -> LossOutput:
    """Squared difference of the regularised scores of each two members, which vanishes at the regularised optimum.

    U = A - beta * sum over the sequence of (logprobs - reference_logprobs)
    loss = sum(share_i * mean over the other members j of (U_i - U_j)^2) / (2 beta)

    No sampling policy appears: any answers will do. Only differences of scores count, so A may be the score.

    Args, Raises: as `group_regression`, with reference_logprobs [N] nats.

    Source: contrastive policy gradient, arXiv:2406.19185.
    """
    members = Members(sequence_ids, group_ids, token_scale)
    difference = members.sum(known_log_ratio("reference_logprobs", logprobs, reference_logprobs, members.mask))
    regularised = members.of_sequence(advantages) - beta * difference
    squares = (regularised[:, None] - regularised[None, :]).square() * members.same_group
    per_member = squares.sum(1) / (members.size - 1.0).clamp(min=1.0)
    return LossOutput(loss=(members.share * per_member).sum() / (2.0 * beta))


def outcome_classification(
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    advantages: Tensor,
    sequence_ids: Tensor,
    group_ids: Tensor,
    token_scale: Tensor,
    *,
    beta: float = 1.0,
    threshold: float = 0.5,
    baseline: str = "leave_one_out",
    balanced: bool = True,
) -> LossOutput:
    """The policy's own log-ratio predicts whether an answer is right.

    psi = beta * (D - mean of D of the other members), D as in `group_regression`
    loss = sum(share * w * cross-entropy(sigmoid(psi), A > threshold))

    In a group with both outcomes w = G / (2 * members of the outcome), else 1. The gradient reaches all members.

    Args, Returns, Raises: as `group_regression`, with advantages = scores.

    Source: PACS, arXiv:2509.02522.
    """
    members = Members(sequence_ids, group_ids, token_scale)
    reward = beta * members.sum(known_log_ratio("behavior_logprobs", logprobs, behavior_logprobs, members.mask))
    right = (members.of_sequence(advantages) > threshold).to(reward.dtype)
    if baseline == "leave_one_out":
        others = (members.group_sum(reward) - reward) / (members.size - 1.0).clamp(min=1.0)
        reward = reward - others
    weight = torch.ones_like(reward)
    if balanced:
        num_right = members.group_sum(right)
        own_class = torch.where(right > 0, num_right, members.size - num_right)
        mixed = (num_right > 0) & (num_right < members.size)
        weight = torch.where(mixed, members.size / (2.0 * own_class), 1.0)
    entropy = F.binary_cross_entropy_with_logits(reward, right, reduction="none")
    return LossOutput(
        loss=(members.share * weight * entropy).sum(),
        metrics=mismatch_metrics(logprobs, behavior_logprobs, members.mask),
    )


def group_preference(
    logprobs: Tensor,
    reference_logprobs: Tensor,
    advantages: Tensor,
    sequence_ids: Tensor,
    group_ids: Tensor,
    token_scale: Tensor,
    *,
    beta: float = 1.0,
    variance_weight: float = 1.0,
) -> LossOutput:
    """Winners of a group over its losers, winners alike among themselves.

    D = sum over the sequence of logprobs - reference_logprobs; winners have A > 0
    loss = sum(share * (-ln sigmoid(beta * (mean D of winners - of losers)) + variance_weight * variance of winners' D))

    The variance is divided by the number of winners. A group without winner or loser teaches nothing.

    Args, Raises: as `contrastive_policy_gradient`, with advantages [N] centred in the group.

    Source: group equivalent preference, arXiv:2505.12723. Whether beta enters the variance is not published.
    """
    members = Members(sequence_ids, group_ids, token_scale)
    difference = members.sum(known_log_ratio("reference_logprobs", logprobs, reference_logprobs, members.mask))
    wins = (members.of_sequence(advantages) > 0).to(difference.dtype)
    num_winners, num_losers = members.group_sum(wins), members.group_sum(1.0 - wins)
    mean_winners = members.group_sum(wins * difference) / num_winners.clamp(min=1.0)
    mean_losers = members.group_sum((1.0 - wins) * difference) / num_losers.clamp(min=1.0)
    variance = members.group_sum(wins * (difference - mean_winners).square()) / num_winners.clamp(min=1.0)
    value = -F.logsigmoid(beta * (mean_winners - mean_losers)) + variance_weight * variance
    both = (num_winners > 0) & (num_losers > 0)
    return LossOutput(loss=(members.share * torch.where(both, value, 0.0)).sum())


GROUP_LOSSES: tuple[Callable[..., LossOutput], ...] = (
    group_regression,
    contrastive_policy_gradient,
    outcome_classification,
    group_preference,
)
"""What `learner.losses.table` lists of this file."""
