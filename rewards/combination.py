"""Makes one verdict of the verdicts of all components, and keeps the breakdown.

In this order: a required component or a veto without a score leaves the sample unscored; a veto cancels everything;
gates; saturation and normalisation of each score; the weighted sum; the clip. A fault of the model (no answer,
rejected, ...) contributes the config's floor, once for all faulted components together. A component behind a closed
gate contributes nothing; where a gate itself has no score, neither have the components behind it. A component of weight
0 is only measured. `Verdict.components` holds the scores as they were judged; `extras["paid"]` what they came to where
a saturation, a normaliser or a veto changed that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rewards.config import RewardComponent, RewardConfig
from rewards.verdict import FLOOR_STATUSES, Status, Verdict

Parts = Mapping[str, Verdict]
"""Verdicts of one answer by component, before they are combined."""

MIN_DEVIATION = 1e-8
"""A component that differs by less says the same of every answer and contributes nothing."""


def combine(config: RewardConfig, verdicts: Parts, normalised: Mapping[str, float] | None = None) -> Verdict:
    """One verdict of the verdicts of all components.

    Args:
        normalised: what to pay instead of the score of components with a normaliser; without it they contribute
            nothing, as in a group of one answer.
    """
    parts = {
        name: _effective(config, component, verdicts[name], verdicts) for name, component in config.components.items()
    }
    details: dict[str, Any] = {
        "components": {name: _component_score(verdict, config.floor) for name, (verdict, _) in parts.items()},
        "extras": _merged_extras(verdicts),
        "seconds": sum(verdict.seconds for verdict in verdicts.values()),
    }
    if closed := [name for name, (_, state) in parts.items() if state == "closed"]:
        details["extras"]["gated"] = closed
    total, faults, paid, vetoes = 0.0, [], {}, []
    for name, component in config.components.items():
        verdict, state = parts[name]
        if state == "closed":
            continue
        if verdict.score is None:
            if component.required or component.veto_below is not None:
                return Verdict.unscored(verdict.status, **details)
            continue
        if component.veto_below is not None and details["components"][name] < component.veto_below:
            vetoes.append(name)
        if component.weight == 0:
            continue
        if verdict.status in FLOOR_STATUSES:
            faults.append(verdict.status)
        else:
            paid[name] = component.weight * _worth(name, component, verdict.score, normalised or {})
            total += paid[name]
    if (success := config.success_component) is not None:
        judged = verdicts[success]
        details["correct"] = judged.status is Status.SCORED and (judged.score or 0.0) > config.success_above
    if all(score is None for score in details["components"].values()):
        return Verdict.unscored(next(iter(verdicts.values())).status, **details)
    if vetoes:
        details["extras"]["vetoed_by"] = vetoes
        return _scored(config, config.floor, [], details)
    if any(part.saturation > 0 or part.normalise != "none" for part in config.components.values()):
        details["extras"]["paid"] = paid
    return _scored(config, total + (config.floor if faults else 0.0), faults, details)


@dataclass(slots=True)
class RunningScales:
    """Mean and deviation, by component, of every score seen."""

    _moments: dict[str, tuple[int, float, float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        """Welford's update."""
        count, mean, squares = self._moments.get(name, (0, 0.0, 0.0))
        delta = value - mean
        mean += delta / (count + 1)
        self._moments[name] = (count + 1, mean, squares + delta * (value - mean))

    def normalised(self, name: str, value: float) -> float:
        """Deviations from the mean; 0 before there are two different scores."""
        count, mean, squares = self._moments.get(name, (0, 0.0, 0.0))
        return _in_deviations(value, mean, math.sqrt(squares / count) if count else 0.0)


def combine_group(
    config: RewardConfig, parts: Sequence[Parts], scales: RunningScales, *, learn: bool = True
) -> list[Verdict]:
    """One verdict per answer to one task.

    Group statistics are those of the scored members whose component is open and no fault, with the population
    deviation: masking a sample is the same as taking it out of the group.

    Args:
        scales: of the components with a running normaliser.
        learn: whether these samples enter the scales; an evaluation's do not.

    Source: normalise, then sum, per component in the group: GDPO, arXiv:2601.05242, as `trl/trainer/grpo_trainer.py`
    has it; with the population deviation.
    """
    names = [name for name, component in config.components.items() if component.normalise != "none"]
    if not names:
        return [combine(config, verdicts) for verdicts in parts]
    is_scored = [combine(config, verdicts).score is not None for verdicts in parts]
    normalised: list[dict[str, float]] = [{} for _ in parts]
    for name in names:
        component = config.components[name]
        values = {}
        for i, verdicts in enumerate(parts):
            verdict, state = _effective(config, component, verdicts[name], verdicts)
            if is_scored[i] and state == "open" and verdict.status is Status.SCORED and verdict.score is not None:
                values[i] = _saturated(component, verdict.score)
        if component.normalise == "running":
            for value in values.values() if learn else ():
                scales.add(name, value)
            found = {i: scales.normalised(name, value) for i, value in values.items()}
        else:
            found = dict(zip(values, group_deviations(list(values.values())), strict=True))
        for i, value in found.items():
            normalised[i][name] = value
    return [combine(config, verdicts, normal) for verdicts, normal in zip(parts, normalised, strict=True)]


def group_deviations(values: Sequence[float]) -> list[float]:
    """Each value's distance from the mean in population deviations; all 0 where they are equal."""
    if not values:
        return []
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return [_in_deviations(value, mean, deviation) for value in values]


def saturated(score: float, strength: float) -> float:
    """(1 - exp(-c s)) / (1 - exp(-c)) for s in [0, 1]: keeps 0 and 1 and bends what lies between; c = 0 is linear."""
    return score if strength == 0 else math.expm1(-strength * score) / math.expm1(-strength)


def _worth(name: str, component: RewardComponent, score: float, normalised: Mapping[str, float]) -> float:
    return normalised.get(name, 0.0) if component.normalise != "none" else _saturated(component, score)


def _saturated(component: RewardComponent, score: float) -> float:
    return saturated(min(max(score, 0.0), 1.0), component.saturation) if component.saturation > 0 else score


def _in_deviations(value: float, mean: float, deviation: float) -> float:
    return (value - mean) / deviation if deviation > MIN_DEVIATION * max(1.0, abs(mean)) else 0.0


def _scored(config: RewardConfig, total: float, faults: list[Status], details: dict[str, Any]) -> Verdict:
    if not math.isfinite(total):
        details["extras"]["error"] = f"the weighted sum of {details['components']} is {total}"
        return Verdict.unscored(Status.INFRA_ERROR, **details)
    if config.clip is not None:
        low, high = config.clip
        total = min(max(total, low), high)
    return Verdict(score=total, status=faults[0] if faults else Status.SCORED, **details)


def _effective(
    config: RewardConfig, component: RewardComponent, verdict: Verdict, verdicts: Parts
) -> tuple[Verdict, Literal["open", "closed", "unknown"]]:
    """A component's verdict after its gates have had their say, and their state: one closed gate is enough."""
    gates = [verdicts[name] for name in component.gates]
    if any(_is_closed(config, name, verdicts[name]) for name in component.gates):
        return verdict, "closed"
    unknown = next((gate for gate in gates if gate.score is None), None)
    return (verdict, "open") if unknown is None else (Verdict.unscored(unknown.status), "unknown")


def is_shut(config: RewardConfig, name: str, verdicts: Parts) -> bool:
    """Whether a gate of this component is closed, so that it will count for nothing whatever it says."""
    return any(_is_closed(config, gate, verdicts[gate]) for gate in config.components[name].gates)


def _is_closed(config: RewardConfig, gate: str, verdict: Verdict) -> bool:
    if verdict.score is None:
        return False
    return verdict.status is not Status.SCORED or verdict.score <= config.components[gate].opens_above


def _component_score(verdict: Verdict, floor: float) -> float | None:
    return floor if verdict.status in FLOOR_STATUSES else verdict.score


def _merged_extras(verdicts: Parts) -> dict[str, Any]:
    """The only component's extras as they are; of several, by component."""
    if len(verdicts) == 1:
        return dict(next(iter(verdicts.values())).extras)
    return {name: dict(verdict.extras) for name, verdict in verdicts.items() if verdict.extras}
