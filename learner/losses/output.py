"""What every loss function returns, and how it reads a constant column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LossOutput:
    """The part of a term that these tokens contribute; parts of micro-batches and ranks simply add up.

    Attributes:
        loss: [] sum over tokens of token_scale times per-token loss; connected to the graph also when no token is
            selected, so that collectives of the backward pass stay in step.
        metrics: [] each, detached, over the selected tokens. The ending of a name says how parts are joined and what
            `Objective.report` makes of the whole: `_sum` adds up and becomes a mean over the term's tokens, `_count`
            adds up and becomes a fraction of them, `_max` is joined by the larger value and stays as it is.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


def selected(column: Tensor, mask: Tensor) -> Tensor:
    """[N] a constant input where the mask is set, 0 elsewhere, without gradient."""
    return torch.where(mask, column, 0.0).detach()
