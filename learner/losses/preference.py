"""Preferences among the members of a group: the better score is preferred. A group lies in one micro-batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from learner.losses.group import Members, known_log_ratio
from learner.losses.output import LossOutput


def pairwise_preference(
    logprobs: Tensor,
    reference_logprobs: Tensor,
    advantages: Tensor,
    sequence_ids: Tensor,
    group_ids: Tensor,
    token_scale: Tensor,
    *,
    beta: float = 0.1,
    form: str = "logistic",
) -> LossOutput:
    """Each better member over each worse one, through log-ratios to the reference.

    D = sum (logistic) or mean (squared) over the sequence of logprobs - reference_logprobs
    loss = sum(share * mean over the group's pairs of  -ln sigmoid(beta (D_better - D_worse))     logistic (DPO)
                                                       (D_better - D_worse - 1 / (2 beta))^2      squared (IPO))

    Pairs of equal scores are no pairs; a group without a pair teaches nothing.

    Args:
        logprobs: [N] nats, policy being trained; the only input that carries gradient.
        reference_logprobs: [N] nats.
        advantages: [N] anything that orders the members of a group.
        sequence_ids, group_ids: [N] equal for tokens of one sequence, of one group.
        token_scale: [N] factor of each token, global denominators divided out; 0 takes a token out altogether.

    Raises:
        ValueError: reference log-probs unknown for a selected token.

    Source: DPO, arXiv:2305.18290; IPO, arXiv:2310.12036, whose text sums where published code takes the mean.
    """
    members = Members(sequence_ids, group_ids, token_scale)
    difference = members.sum(known_log_ratio("reference_logprobs", logprobs, reference_logprobs, members.mask))
    if form == "squared":
        difference = difference / members.length
    margin = difference[:, None] - difference[None, :]
    values = (margin - 1.0 / (2.0 * beta)).square() if form == "squared" else -F.logsigmoid(beta * margin)
    return LossOutput(loss=(members.share * members.mean_over_pairs(values, _better(members, advantages))).sum())


def odds_ratio_preference(
    logprobs: Tensor,
    advantages: Tensor,
    sequence_ids: Tensor,
    group_ids: Tensor,
    token_scale: Tensor,
    *,
    beta: float = 0.1,
) -> LossOutput:
    """Imitation of the better member of each pair plus its odds against the worse one; no reference.

    m = mean log-prob of the sequence, odds = m - ln(1 - e^m)
    loss = sum(share * mean over the group's pairs of (-m_better - beta * ln sigmoid(odds_better - odds_worse)))

    Args: as `pairwise_preference`.

    Source: ORPO, arXiv:2403.07691.
    """
    members = Members(sequence_ids, group_ids, token_scale)
    # A sequence of probability 1 would have infinite odds; one float32 step below it has not.
    mean = (members.sum(logprobs) / members.length).clamp(max=-1e-6)
    odds = mean - torch.log(-torch.expm1(mean))
    values = -mean[:, None] - beta * F.logsigmoid(odds[:, None] - odds[None, :])
    return LossOutput(loss=(members.share * members.mean_over_pairs(values, _better(members, advantages))).sum())


def prospect_preference(
    logprobs: Tensor,
    reference_logprobs: Tensor,
    advantages: Tensor,
    sequence_ids: Tensor,
    point: Tensor,
    token_scale: Tensor,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> LossOutput:
    """Good answers above a reference point and bad ones below it; needs no pairs.

    D as in `pairwise_preference`
    loss = sum(share * w * (1 - sigmoid(beta (D - z))) where A > 0;  (1 - sigmoid(beta (z - D))) elsewhere)

    Published code estimates z on answers to other prompts; here it is the mean D of all answers of the update.

    Args, Raises: as `pairwise_preference`, with A > 0 for a good answer; point: [N] z, nats.

    Source: KTO, arXiv:2402.01306.
    """
    members = Members(sequence_ids, sequence_ids, token_scale)
    difference = members.sum(known_log_ratio("reference_logprobs", logprobs, reference_logprobs, members.mask))
    good = members.of_sequence(advantages) > 0
    above = difference - members.of_sequence(point)
    weight = torch.where(good, desirable_weight, undesirable_weight)
    return LossOutput(
        loss=(members.share * weight * torch.sigmoid(-beta * torch.where(good, above, -above))).sum(),
    )


def _better(members: Members, advantages: Tensor) -> Tensor:
    """[S, S] True where the row's sequence has the better score of two members of one group."""
    scores = members.of_sequence(advantages)
    return (scores[:, None] > scores[None, :]) & (members.same_group > 0)


PREFERENCE_LOSSES: tuple[Callable[..., LossOutput], ...] = (
    pairwise_preference,
    odds_ratio_preference,
    prospect_preference,
)
"""What `learner.losses.table` lists of this file."""
