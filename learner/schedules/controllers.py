"""Controllers of coefficients as pure functions: settings, state and a measured number in, state out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from learner.schedules.config import PID, AdaptiveKL, Controller, DualAscent, EntropyAdaptive


@dataclass(frozen=True, slots=True)
class ControlState:
    """What a controller remembers between steps.

    Attributes:
        value: the coefficient.
        total: sum of errors; of PID alone.
        error: the last one, NaN before the first; of PID alone.
    """

    value: float
    total: float = 0.0
    error: float = math.nan


def first_state(settings: Controller) -> ControlState:
    """Before the first step."""
    return ControlState(settings.start)


def advance(settings: Controller, state: ControlState, measured: float, num_sequences: float) -> ControlState:
    """The state after a step in which `measured` was seen over `num_sequences`; within the settings' bounds.

    A measured number that is not finite moves nothing.
    """
    if not math.isfinite(measured):
        return state
    moved = _RULES[settings.kind](settings, state, measured, num_sequences)
    value = max(moved.value, settings.low)
    value = value if settings.high is None else min(value, settings.high)
    beyond = moved.value - value
    if beyond * (moved.total - state.total) > 0:  # an error that cannot take effect must not pile up
        moved = replace(moved, total=state.total)
    return replace(moved, value=value)


def _adaptive_kl(settings: AdaptiveKL, state: ControlState, measured: float, num_sequences: float) -> ControlState:
    """Source: Ziegler et al., arXiv:1909.08593, section 2.2, as in PPO implementations."""
    error = min(max(measured / settings.target - 1.0, -0.2), 0.2)
    return ControlState(state.value * (1.0 + error * num_sequences / settings.horizon))


def _pid(settings: PID, state: ControlState, measured: float, num_sequences: float) -> ControlState:
    error = measured - settings.target
    total = state.total + error
    change = 0.0 if math.isnan(state.error) else error - state.error
    value = settings.start + settings.proportional * error + settings.integral * total + settings.derivative * change
    return ControlState(value, total, error)


def _dual_ascent(settings: DualAscent, state: ControlState, measured: float, num_sequences: float) -> ControlState:
    return ControlState(state.value + settings.rate * (measured - settings.target))


def _entropy_adaptive(
    settings: EntropyAdaptive, state: ControlState, measured: float, num_sequences: float
) -> ControlState:
    return ControlState(settings.start * math.exp(settings.rate * measured))


_RULES: Mapping[str, Callable[[Any, ControlState, float, float], ControlState]] = {
    "adaptive_kl": _adaptive_kl,
    "pid": _pid,
    "dual_ascent": _dual_ascent,
    "entropy_adaptive": _entropy_adaptive,
}


class Controls:
    """The controllers of an objective's terms and what they remember."""

    def __init__(self, labels: Sequence[str], settings: Sequence[Controller | None]) -> None:
        """One entry per term.

        Raises:
            ValueError: a controller measures a term that is not there.
        """
        self._labels, self._settings = tuple(labels), tuple(settings)
        self._states = [None if s is None else first_state(s) for s in settings]
        for label, controller in zip(labels, settings, strict=True):
            if controller is not None and controller.of not in (None, *labels):
                raise ValueError(
                    f"controller of term {label} measures {controller.of!r}, but the terms are {', '.join(labels)}"
                )

    @property
    def coefficients(self) -> tuple[float, ...]:
        """Per term; 1 without a controller."""
        return tuple(1.0 if state is None else state.value for state in self._states)

    @property
    def states(self) -> list[ControlState]:
        """Those of the terms that have a controller, in order; writing them back continues from them."""
        return [state for state in self._states if state is not None]

    @states.setter
    def states(self, states: Sequence[ControlState]) -> None:
        given = iter(states)
        self._states = [None if state is None else next(given) for state in self._states]

    def observe(self, report: Mapping[str, Mapping[str, float]]) -> None:
        """Moves them by what an applied step measured, per term label and the same on every rank.

        A term without a token at this step moves nothing.

        Raises:
            ValueError: a controller reads a number its term does not report.
        """
        for index, (label, settings) in enumerate(zip(self._labels, self._settings, strict=True)):
            state = self._states[index]
            if settings is None or state is None:
                continue
            seen = report[settings.of or label]
            if not seen["num_tokens"]:
                continue
            if settings.measure not in seen:
                raise ValueError(
                    f"controller of term {label} reads {settings.measure!r}, which {settings.of or label} does not "
                    f"report; it has {', '.join(sorted(seen))}"
                )
            self._states[index] = advance(settings, state, seen[settings.measure], seen["num_sequences"])
