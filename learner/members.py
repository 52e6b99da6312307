"""What one update did to each trajectory of its batch: how far the policy had moved on it, and how much was clipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.config import Term
from learner.ratios import log_ratio


@dataclass(frozen=True, slots=True)
class MemberRecord:
    """One trajectory at one update.

    Attributes:
        num_tokens: trained ones.
        ratio: mean of policy over behaviour probability of those tokens; None where no term forms a ratio.
        clipped: share of them outside the bounds of a term that clips token by token; None where none does.
    """

    num_tokens: int
    ratio: float | None
    clipped: float | None


@torch.no_grad()
def member_sums(columns: Mapping[str, Tensor], terms: Sequence[tuple[str, Term]], num_members: int) -> Tensor:
    """[4, num_members] float64 of one micro-batch: trained tokens; their ratios, tokens with a ratio, clipped ones.

    Args:
        columns: [N] each, as `Objective.loss` takes them.
        terms: with their labels.
    """
    places, logprobs = columns["sequence_ids"].long(), columns["logprobs"].detach()
    behavior = columns.get("behavior_logprobs", torch.full_like(logprobs, torch.nan))
    known = torch.isfinite(behavior)
    ratio = log_ratio(logprobs, behavior, known).exp().double()
    trained = clipped = torch.zeros_like(known)
    for label, term in terms:
        mask = columns[f"{label}/token_scale"] != 0
        trained = trained | mask
        if (bounds := clip_bounds(term)) is not None:
            clipped = clipped | (mask & known & ((ratio < bounds[0]) | (ratio > bounds[1])))
    measured = trained & known
    rows = torch.stack([trained, torch.where(measured, ratio, 0.0), measured, clipped]).double()
    return torch.zeros(4, num_members, dtype=torch.float64, device=rows.device).index_add_(1, places, rows)


def member_records(sums: Tensor, terms: Sequence[Term]) -> tuple[MemberRecord, ...]:
    """Of the sums over all micro-batches and ranks, one record per trajectory, groups and members in order."""
    clips = any(clip_bounds(term) is not None for term in terms)
    return tuple(
        MemberRecord(int(tokens), total / known if known else None, clipped / known if known and clips else None)
        for tokens, total, known, clipped in sums.T.tolist()
    )


def clip_bounds(term: Term) -> tuple[float, float] | None:
    """Smallest and largest token ratio a term does not clip; None for one that clips nothing, or whole sequences."""
    low, high = getattr(term.loss, "clip_low", None), getattr(term.loss, "clip_high", None)
    if low is None or high is None or term.loss.couples_tokens or term.ratio_to != "behavior":
        return None
    return 1.0 - low, 1.0 + high
