"""Coefficients over time: schedules know the step alone, controllers what was measured."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rewards.config import Section


class Schedule(Section):
    """A coefficient as a function of the learner step (0-based).

    constant: start.  linear, cosine: start -> end over `steps` after `warmup` steps that climb 0 -> start, then end.
    step: start before `steps`, end from there on.  stairs: linear, but in equal stairs of `stair` steps each.
    inverse: 1 / (the linear one).
    """

    kind: Literal["constant", "linear", "cosine", "step", "stairs", "inverse"] = "constant"
    """The shape, see above."""
    start: float = 1.0
    """Value at the first step after the warm-up."""
    end: float | None = None
    """Value at the end and from there on; only for a schedule that changes."""
    steps: int = Field(default=0, ge=0)
    """Steps from start to end, the warm-up not counted."""
    warmup: int = Field(default=0, ge=0)
    """Steps before that, climbing from 0."""
    hold: int = Field(default=0, ge=0)
    """Steps at `start` between the warm-up and the change."""
    stair: int = Field(default=1, ge=1)
    """Steps of one stair, of kind stairs only."""
    complemented: bool = False
    """The value is 1 minus the schedule: the other side of a convex mixture."""

    @model_validator(mode="after")
    def _needs_end(self) -> Schedule:
        if self.kind != "constant" and (self.end is None or self.steps < 1):
            raise ValueError(
                f"a {self.kind} schedule needs `end` and `steps` >= 1, got end={self.end} steps={self.steps}"
            )
        if self.kind == "constant" and (self.end is not None or self.steps):
            raise ValueError(
                f"a constant schedule never reaches end={self.end} steps={self.steps}: say kind=linear, cosine or step"
            )
        if self.kind == "inverse" and (self.start <= 0 or (self.end or 0.0) <= 0):
            raise ValueError(
                f"an inverse schedule divides by values between start={self.start} and end={self.end}, which must lie "
                "above 0"
            )
        return self

    def complement(self) -> Schedule:
        """The schedule 1 - self."""
        return self.model_copy(update={"complemented": not self.complemented})

    def at(self, step: int) -> float:
        """Value at a 0-based learner step."""
        value = self._raw(step)
        return 1.0 - value if self.complemented else value

    def _raw(self, step: int) -> float:
        if step < self.warmup:
            return self.start * step / self.warmup
        if self.kind == "constant" or self.end is None:
            return self.start
        done = max(0, step - self.warmup - self.hold)
        if self.kind == "stairs":
            done = math.ceil(done / self.stair) * self.stair
        progress = min(1.0, done / self.steps)
        if self.kind == "step":
            return self.start if progress < 1.0 else self.end
        if self.kind in ("linear", "stairs", "inverse"):
            value = self.start + (self.end - self.start) * progress
            return 1.0 / value if self.kind == "inverse" else value
        return self.end + (self.start - self.end) * 0.5 * (1.0 + math.cos(math.pi * progress))


class ControllerBase(Section):
    """What all controllers share: they move a coefficient by a number that the last step reported."""

    start: float = Field(default=1.0, ge=0)
    """The coefficient of the first step."""
    measure: str
    """A number of a term's report, e.g. "kl_mean", "entropy_mean", "chi2", "loss"."""
    of: str | None = None
    """Label of the term that is measured, e.g. "live/clipped_surrogate"; None is the term itself."""
    low: float = Field(default=0.0, ge=0)
    """Smallest coefficient."""
    high: float | None = Field(default=None, gt=0)
    """Largest coefficient; None bounds nothing."""

    @model_validator(mode="after")
    def _start_is_inside(self) -> ControllerBase:
        if self.start < self.low or (self.high is not None and self.start > self.high):
            raise ValueError(
                f"controller.start={self.start} lies outside low={self.low} and high={self.high}: move one of them"
            )
        return self


class AdaptiveKL(ControllerBase):
    """beta <- beta (1 + clip(x / target - 1, -0.2, 0.2) n / horizon), n the sequences of the step."""

    kind: Literal["adaptive_kl"] = "adaptive_kl"
    measure: str = "kl_mean"
    """A number of a term's report."""
    target: float = Field(gt=0)
    """Where the measure is wanted."""
    horizon: float = Field(default=10_000, gt=0)
    """Sequences over which a deviation takes effect."""


class PID(ControllerBase):
    """start + P e + I sum of e + D change of e, with e = x - target."""

    kind: Literal["pid"] = "pid"
    target: float
    """Where the measure is wanted."""
    proportional: float = 0.0
    """Per unit of the error."""
    integral: float = 0.0
    """Per unit of the sum of errors; the sum stands still while the coefficient is at a bound and would go beyond."""
    derivative: float = 0.0
    """Per unit of the error's change since the last step."""


class DualAscent(ControllerBase):
    """lambda <- lambda + rate (x - target), not below `low`: the multiplier of the constraint x <= target."""

    kind: Literal["dual_ascent"] = "dual_ascent"
    target: float
    """Bound of the measure."""
    rate: float = Field(gt=0)
    """Step size."""


class EntropyAdaptive(ControllerBase):
    """start exp(rate x): falls (rate < 0) or grows with the policy's entropy."""

    kind: Literal["entropy_adaptive"] = "entropy_adaptive"
    measure: str = "entropy_mean"
    """A number of a term's report."""
    rate: float = -1.0
    """Per nat."""


Controller = Annotated[AdaptiveKL | PID | DualAscent | EntropyAdaptive, Field(discriminator="kind")]
