"""The loss functions by name. Each has a parameter model of the same name in `learner/config.py`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from learner.losses.distillation.functions import DISTILLATION_LOSSES
from learner.losses.distribution import DISTRIBUTION_LOSSES
from learner.losses.expert import mixture_ratio, shaped_likelihood, shaped_ratio
from learner.losses.group import GROUP_LOSSES
from learner.losses.imitation import negative_log_likelihood
from learner.losses.mixing import MIXING_LOSSES
from learner.losses.offpolicy import OFF_POLICY_LOSSES
from learner.losses.output import LossOutput
from learner.losses.preference import PREFERENCE_LOSSES
from learner.losses.regularizers import (
    entropy_bonus,
    importance_weighted_kl,
    kl_to_reference,
    ratio_variance,
    rehearsal_divergence,
    squared_log_ratio,
)
from learner.losses.score import divergence_masked_policy_gradient, policy_gradient, weighted_policy_gradient
from learner.losses.sequence import geometric_mean_surrogate, sequence_surrogate
from learner.losses.surrogate import (
    clipped_surrogate,
    inverse_ratio_surrogate,
    ratio_surrogate,
    recentred_surrogate,
    soft_gate_surrogate,
)
from learner.losses.updatewide import UPDATE_WIDE_LOSSES


@dataclass(frozen=True, slots=True)
class LossEntry:
    """A loss function and the token columns it takes: its positional parameters. Keyword-only ones are settings."""

    function: Callable[..., LossOutput]
    columns: tuple[str, ...]


def _entry(function: Callable[..., LossOutput]) -> LossEntry:
    parameters = inspect.signature(function).parameters.values()
    return LossEntry(function, tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD))


LOSSES: Mapping[str, LossEntry] = {
    function.__name__: _entry(function)
    for function in (
        clipped_surrogate,
        ratio_surrogate,
        recentred_surrogate,
        soft_gate_surrogate,
        inverse_ratio_surrogate,
        sequence_surrogate,
        geometric_mean_surrogate,
        policy_gradient,
        weighted_policy_gradient,
        divergence_masked_policy_gradient,
        negative_log_likelihood,
        shaped_likelihood,
        shaped_ratio,
        mixture_ratio,
        kl_to_reference,
        importance_weighted_kl,
        squared_log_ratio,
        ratio_variance,
        rehearsal_divergence,
        entropy_bonus,
        *GROUP_LOSSES,
        *PREFERENCE_LOSSES,
        *UPDATE_WIDE_LOSSES,
        *MIXING_LOSSES,
        *DISTILLATION_LOSSES,
        *OFF_POLICY_LOSSES,
        *DISTRIBUTION_LOSSES,
    )
}
"""Name of a loss in a Term to what evaluates it."""
