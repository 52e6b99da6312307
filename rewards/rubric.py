"""Judges answers by the named verifiers of a configuration."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rewards.combination import combine
from rewards.config import RewardComponent, RewardConfig
from rewards.import_path import ImportPathError, load_callable
from rewards.task import Task
from rewards.verdict import Status, Verdict

Result = Verdict | float | bool
Verifier = Callable[..., Result | Sequence[Result]]
"""`(answer, task, **options)`, or with `scope: group` `(answers, task, **options)` for one result per answer; a pure
function of its arguments."""

VERIFIERS: dict[str, str] = {
    "answer_frequency": "rewards.verifiers.votes:answer_frequency",
    "box_iou": "rewards.verifiers.structured:box_iou",
    "close_number": "rewards.verifiers.close_number:close_number",
    "code": "rewards.verifiers.code:code",
    "exact_match": "rewards.verifiers.exact_match:exact_match",
    "final_number": "rewards.verifiers.final_number:final_number",
    "format_tags": "rewards.verifiers.format_tags:format_tags",
    "instructions": "rewards.verifiers.instructions:instructions",
    "json_schema": "rewards.verifiers.structured:json_schema",
    "majority_vote": "rewards.verifiers.votes:majority_vote",
    "math": "rewards.verifiers.math_answer:math_answer",
    "next_segment": "rewards.verifiers.next_segment:next_segment",
    "ordering": "rewards.verifiers.structured:ordering",
    "point_in_box": "rewards.verifiers.structured:point_in_box",
    "reasoning_gym": "rewards.verifiers.reasoning_gym:reasoning_gym",
    "regex_match": "rewards.verifiers.regex_match:regex_match",
    "repetition": "rewards.verifiers.repetition:repetition",
    "self_play": "rewards.verifiers.self_play:self_play",
    "soft_overlong": "rewards.verifiers.length:soft_overlong",
    "target_length": "rewards.verifiers.length:target_length",
    "tool_calls": "rewards.verifiers.structured:tool_calls",
    "variable_values": "rewards.verifiers.execution:variable_values",
}
"""Built-in verifiers, by the name a config uses. Imported on first use: some need libraries that load slowly."""

GROUP_VERIFIERS = frozenset({"answer_frequency", "majority_vote"})
"""Those of them that judge all answers of a group at once."""

SANDBOXED = frozenset({"code"})
"""Those that run model-written programs; the sandbox must pass its self-test before they pay."""


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
    """Judges answers by the components of a config that verifiers judge; `rewards.combination` makes one verdict of
    their verdicts. Those that a model judges are left to `rewards.judges`."""

    def __init__(self, config: RewardConfig) -> None:
        """Resolves every verifier.

        Raises:
            ImportPathError: a verifier cannot be found.
            ValueError: no components, a scope that is not the verifier's, or options it does not take.
        """
        if not config.components:
            raise ValueError("reward.components is empty, so no answer could be scored: name at least one verifier")
        self._config = config
        self._parts = [
            _resolve(name, component)
            for name, component in config.components.items()
            if config.service_of(component) is None
        ]

    def judge(self, answer: str, task: Task) -> Verdict:
        """One verdict for one answer, which is a group of its own. Never raises for what a verifier does, save for a
        keyboard interrupt."""
        (group_parts,) = self.group_parts([answer], task)
        parts = {**self.parts(answer, task), **group_parts}
        return combine(self._config, {part.name: parts[part.name] for part in self._parts})

    def parts(self, answer: str, task: Task) -> dict[str, Verdict]:
        """What the components of scope `sample` say of one answer."""
        return {part.name: _run(part, answer, task) for part in self._parts if part.config.scope == "sample"}

    def group_parts(self, answers: Sequence[str], task: Task) -> list[dict[str, Verdict]]:
        """What the components of scope `group` say of each of the answers."""
        by_part = {p.name: _run_group(p, answers, task) for p in self._parts if p.config.scope == "group"}
        return [{name: verdicts[i] for name, verdicts in by_part.items()} for i in range(len(answers))]


def _resolve(name: str, component: RewardComponent) -> _Part:
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
    if component.verifier in VERIFIERS and (component.scope == "group") != (component.verifier in GROUP_VERIFIERS):
        needed = "group" if component.verifier in GROUP_VERIFIERS else "sample"
        raise ValueError(f"reward.components.{name}: verifier {component.verifier!r} needs scope: {needed}")
    return _Part(name, component, verify)


def _run(part: _Part, answer: str, task: Task) -> Verdict:
    """The verifier's verdict; whatever else it does is a fault of the infrastructure, never a score."""
    start = time.perf_counter()
    result = _called(part, answer, task)
    return replace(_verdict_of(part, result), seconds=time.perf_counter() - start)


def _run_group(part: _Part, answers: Sequence[str], task: Task) -> list[Verdict]:
    """One verdict per answer; the verifier's time is shared out among them."""
    start = time.perf_counter()
    results: Any = _called(part, answers, task)
    if isinstance(results, Verdict):  # the call failed
        results = [results] * len(answers)
    elif not isinstance(results, Sequence) or isinstance(results, str) or len(results) != len(answers):
        size = f"{len(results)} results" if isinstance(results, Sequence) else f"a {type(results).__name__}"
        fault = f"group verifier {part.config.verifier!r} returned {size} for {len(answers)} answers"
        results = [_infra_error(fault)] * len(answers)
    seconds = (time.perf_counter() - start) / max(len(answers), 1)
    return [replace(_verdict_of(part, result), seconds=seconds) for result in results]


def _called(part: _Part, subject: str | Sequence[str], task: Task) -> Any:
    try:
        return part.verify(subject, task, **part.config.options)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # attributed: SystemExit and timeouts derived from BaseException are its faults too
        return _infra_error(f"verifier {part.config.verifier!r} raised {type(error).__name__}: {error}")


def _verdict_of(part: _Part, result: Any) -> Verdict:
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
