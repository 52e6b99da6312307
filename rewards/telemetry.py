"""Every metric's name, unit, kind and meaning in one table, and the sink protocol. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class Metric:
    """One number the system reports.

    Attributes:
        unit: of the value; `1` for pure numbers.
        reduction: how values of several reporters or moments become one: last, sum, mean, max.
        meaning: one sentence a person reading a dashboard understands.
    """

    unit: str
    reduction: Literal["last", "sum", "mean", "max"]
    meaning: str


METRICS: dict[str, Metric] = {
    "step": Metric("1", "last", "Committed optimizer steps."),
    "policy_version": Metric("1", "last", "Newest published policy version."),
    "loss": Metric("1", "last", "Sum of the weighted terms of the last step."),
    "grad_norm": Metric("1", "last", "Global gradient norm before clipping."),
    "learning_rate": Metric("1", "last", "Learning rate of the last step."),
    "reward_mean": Metric("reward", "mean", "Mean score of the scored live samples of a batch."),
    "policy_age_mean": Metric("steps", "mean", "Mean age of live groups when they were handed out."),
    "policy_age_max": Metric("steps", "max", "Oldest live group handed out in a batch."),
    "age_violations": Metric("groups", "sum", "Groups handed out above max_age; must stay 0."),
    "lease_wait_s": Metric("s", "sum", "Time the learner waited for a batch."),
    "ticket_wait_s": Metric("s", "sum", "Time rollout workers waited for permission to sample."),
    "train_s": Metric("s", "sum", "Time in forward, backward and optimizer."),
    "publish_s": Metric("s", "sum", "Time to write a new version."),
    "activate_s": Metric("s", "sum", "Time an engine was paused for a new version."),
    "generated_tokens": Metric("tokens", "sum", "Tokens sampled by the engines."),
    "trained_tokens": Metric("tokens", "sum", "Tokens that entered a loss term."),
    "accuracy": Metric("share", "last", "Held-out accuracy."),
}


class Sink(Protocol):
    """Where numbers go."""

    def write(self, step: int, values: Mapping[str, float], tags: Mapping[str, str]) -> None: ...

    def close(self) -> None: ...
