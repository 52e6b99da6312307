"""Combines named verifiers into one verdict and keeps the breakdown."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from rewards.config import RewardComponent, RewardConfig
from rewards.import_path import ImportPathError, load_callable
from rewards.task import Task
from rewards.verdict import FLOOR_STATUSES, Status, Verdict

Verifier = Callable[..., Verdict | float | bool]
"""`(answer, task, **options)`; a pure function of its arguments."""

VERIFIERS: dict[str, str] = {
    "box_iou": "rewards.verifiers.structured:box_iou",
    "code": "rewards.verifiers.code:code",
    "exact_match": "rewards.verifiers.exact_match:exact_match",
    "final_number": "rewards.verifiers.final_number:final_number",
    "format_tags": "rewards.verifiers.format_tags:format_tags",
    "json_schema": "rewards.verifiers.structured:json_schema",
    "math": "rewards.verifiers.math_answer:math_answer",
    "ordering": "rewards.verifiers.structured:ordering",
    "point_in_box": "rewards.verifiers.structured:point_in_box",
    "reasoning_gym": "rewards.verifiers.reasoning_gym:reasoning_gym",
    "regex_match": "rewards.verifiers.regex_match:regex_match",
    "repetition": "rewards.verifiers.repetition:repetition",
    "soft_overlong": "rewards.verifiers.length:soft_overlong",
    "target_length": "rewards.verifiers.length:target_length",
    "tool_calls": "rewards.verifiers.structured:tool_calls",
}
"""Built-in verifiers, by the name a config uses. Imported on first use: some need libraries that load slowly."""


def resolve_verifier(spec: str) -> Verifier:
    """The function behind a name of VERIFIERS or an import path `my_pkg.rewards:score`.

    Raises:
        ImportPathError: there is none; the message names what is missing and the nearest known names.
    """
    return load_callable(VERIFIERS.get(spec, spec), purpose="verifier", known_names=VERIFIERS)


@dataclass(frozen=True, slots=True)
class _Part:
    name: str
    config: RewardComponent
    verify: Verifier


class Rubric:
    """Judges answers by the components of a config.

    Per component: SCORED contributes weight x score; a fault of the model (no answer, rejected, ...) contributes the
    config's floor, once for all faulted components together; a component behind a closed gate contributes nothing;
    a required component without a score leaves the whole sample unscored. The sum is clipped last.

    A gate is open when its component was SCORED above 0. Where the gate itself has no score, neither have the
    components behind it. A component of weight 0 is only measured.
    """

    def __init__(self, config: RewardConfig) -> None:
        """Resolves every verifier.

        Raises:
            ImportPathError: a verifier cannot be found.
            ValueError: no components, a gate that names no other component, or options a verifier does not take.
        """
        if not config.components:
            raise ValueError("reward.components is empty, so no answer could be scored: name at least one verifier")
        self._config = config
        self._parts = [_resolve(name, component, config) for name, component in config.components.items()]

    def judge(self, answer: str, task: Task) -> Verdict:
        """One verdict for one answer. Never raises for what a verifier does, save for a keyboard interrupt."""
        start = time.perf_counter()
        verdicts = {part.name: _run(part, answer, task) for part in self._parts}
        return replace(self._combine(verdicts), seconds=time.perf_counter() - start)

    def _combine(self, verdicts: Mapping[str, Verdict]) -> Verdict:
        parts = {part.name: self._effective(part, verdicts) for part in self._parts}
        components = {name: self._component_score(verdict) for name, (verdict, _) in parts.items()}
        extras = _merged_extras(verdicts)
        closed = [name for name, (_, state) in parts.items() if state == "closed"]
        if closed:
            extras["gated"] = closed
        total, faults = 0.0, []
        for part in self._parts:
            verdict, state = parts[part.name]
            if state == "closed":
                continue
            if verdict.score is None:
                if part.config.required:
                    return Verdict.unscored(verdict.status, components=components, extras=extras)
            elif part.config.weight != 0:
                if verdict.status in FLOOR_STATUSES:
                    faults.append(verdict.status)
                else:
                    total += part.config.weight * verdict.score
        if all(score is None for score in components.values()):
            status = next(iter(verdicts.values())).status
            return Verdict.unscored(status, components=components, extras=extras)
        return self._scored(total, faults, components, extras)

    def _scored(
        self, total: float, faults: list[Status], components: Mapping[str, float | None], extras: Mapping[str, Any]
    ) -> Verdict:
        if faults:
            total += self._config.floor
        if not math.isfinite(total):
            error = {"error": f"the weighted sum of {dict(components)} is {total}"}
            return Verdict.unscored(Status.INFRA_ERROR, components=components, extras={**extras, **error})
        if self._config.clip is not None:
            low, high = self._config.clip
            total = min(max(total, low), high)
        status = faults[0] if faults else Status.SCORED
        return Verdict(score=total, status=status, components=components, extras=extras)

    def _effective(
        self, part: _Part, verdicts: Mapping[str, Verdict]
    ) -> tuple[Verdict, Literal["open", "closed", "unknown"]]:
        """A component's verdict after its gate has had its say, and the state of that gate."""
        if part.config.gate is None:
            return verdicts[part.name], "open"
        gate = verdicts[part.config.gate]
        if gate.score is None:
            return Verdict.unscored(gate.status), "unknown"
        is_open = gate.status is Status.SCORED and gate.score > 0
        return verdicts[part.name], "open" if is_open else "closed"

    def _component_score(self, verdict: Verdict) -> float | None:
        return self._config.floor if verdict.status in FLOOR_STATUSES else verdict.score


def _resolve(name: str, component: RewardComponent, config: RewardConfig) -> _Part:
    gates = [other for other in config.components if other != name]
    if component.gate is not None and component.gate not in gates:
        raise ValueError(
            f"reward.components.{name}.gate={component.gate!r} names no other component: choose from {gates or 'none'}"
        )
    try:
        verify = resolve_verifier(component.verifier)
    except ImportPathError as error:
        raise ImportPathError(f"reward.components.{name}: {error}") from error
    try:
        inspect.signature(verify).bind("", None, **component.options)
    except TypeError as error:
        raise ValueError(
            f"reward.components.{name}: verifier {component.verifier!r} cannot be called as (answer, task, **options) "
            f"with options {component.options}: {error}. Its signature is {inspect.signature(verify)}"
        ) from error
    except ValueError:  # a callable written in C without a signature: the first call will tell
        pass
    return _Part(name, component, verify)


def _run(part: _Part, answer: str, task: Task) -> Verdict:
    """The verifier's verdict; whatever else it does is a fault of the infrastructure, never a score."""
    try:
        result = part.verify(answer, task, **part.config.options)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # attributed: SystemExit and timeouts derived from BaseException are its faults too
        return _infra_error(f"verifier {part.config.verifier!r} raised {type(error).__name__}: {error}")
    try:
        if isinstance(result, Verdict):
            score = None if result.score is None else float(result.score)
            return replace(result, score=score, extras=dict(result.extras))
        if isinstance(result, bool | int | float | np.bool_ | np.number):
            return Verdict.scored(float(result))
    except (ArithmeticError, TypeError, ValueError) as error:
        return _infra_error(f"verifier {part.config.verifier!r} returned an unusable {result!r:.200}: {error}")
    return _infra_error(
        f"verifier {part.config.verifier!r} returned a {type(result).__name__}; return a Verdict, a float or a bool"
    )


def _infra_error(message: str) -> Verdict:
    return Verdict.unscored(Status.INFRA_ERROR, extras={"error": message[:2000]})


def _merged_extras(verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
    """The only component's extras as they are; of several, by component."""
    if len(verdicts) == 1:
        return dict(next(iter(verdicts.values())).extras)
    return {name: dict(verdict.extras) for name, verdict in verdicts.items() if verdict.extras}
