"""Weights for the step from the policy that sampled to the one training starts from. Pure; no gradient exists here.

    rho = exp(proximal_logprobs - behavior_logprobs)

A weight changes the measure, not the objective, so it multiplies a token's share of the term. Denominators stay those
of all the term's tokens: a token of weight 0 is gone from the sum and still counted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from learner.config import Correction, Rejection
from learner.ratios import at_level, k2, log_ratio, require_known, sequence_sums


def correction_weights(
    correction: Correction,
    *,
    logprobs: Tensor,
    proximal_logprobs: Tensor,
    behavior_logprobs: Tensor,
    sequence_ids: Tensor,
    mask: Tensor,
    advantages: Tensor | None = None,
) -> Tensor:
    """[N] weights >= 0, 0 outside the mask and on rejected tokens.

    Every criterion looks at all masked tokens, also at those another one rejects; a token stays when all are met.

    Args:
        logprobs: [N] nats, policy being trained; only `max_negative_drift` reads them.
        proximal_logprobs: [N] nats, policy at the start of the update.
        behavior_logprobs: [N] nats, policy that sampled the token.
        sequence_ids: [N] equal for tokens of one sequence.
        mask: [N] bool.
        advantages: [N] reward units, for `max_negative_drift`.

    Raises:
        ValueError: behaviour log-probs unknown for a masked token; `max_negative_drift` without advantages.
    """
    require_known("behavior_logprobs", behavior_logprobs, mask)
    with torch.no_grad():
        distance = log_ratio(proximal_logprobs, behavior_logprobs, mask)
        weights = _transformed(at_level(distance, sequence_ids, mask, correction.level).exp(), correction)
        keep = mask & _kept(correction.reject, distance, sequence_ids, mask)
        if correction.max_negative_drift is not None:
            if advantages is None:
                raise ValueError("max_negative_drift looks at the sign of advantages, but this loss has none; drop it")
            drift = at_level(log_ratio(behavior_logprobs, logprobs, mask), sequence_ids, mask, "geometric")
            keep = keep & ~((advantages < 0) & (drift > correction.max_negative_drift))
        return torch.where(keep, weights, 0.0)


def _transformed(ratio: Tensor, correction: Correction) -> Tensor:
    if correction.transform == "one":
        return torch.ones_like(ratio)
    if correction.transform == "band":
        return torch.where((ratio >= correction.low) & (ratio <= correction.high), ratio, 0.0)
    if correction.transform == "clamp":
        return ratio.clamp(correction.low, correction.high)
    return ratio


def _kept(rejections: Sequence[Rejection], distance: Tensor, sequence_ids: Tensor, mask: Tensor) -> Tensor:
    keep = torch.ones_like(mask)
    for rejection in rejections:
        statistic = _STATISTICS[rejection.statistic](distance)
        if rejection.over in ("mean", "sum"):
            level = {"mean": "geometric", "sum": "product"}[rejection.over]
            statistic = at_level(statistic, sequence_ids, mask, level)
        if rejection.statistic == "ratio":
            statistic = statistic.exp()
        inside = (statistic >= rejection.low) & (statistic <= rejection.high)
        if rejection.over == "all":
            inside = sequence_sums((~inside).to(distance.dtype), sequence_ids, mask) == 0
        keep = keep & inside
    return keep


_STATISTICS = {
    "ratio": lambda distance: distance,
    "k2": k2,
    "k3": lambda distance: torch.expm1(distance) - distance,
}
"""Of d = log proximal - log behaviour of a token the behaviour policy sampled; "ratio" is exponentiated at the end."""
