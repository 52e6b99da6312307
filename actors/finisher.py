"""Finisher: what becomes of a scored group, by the recipe's rules.

A rule is a pure function `(group, leased task, ledger row or None, **options) -> action or None`. The first terminal
action (Keep, Drop, Redo, Grow) decides; the other actions may accompany it. Without a decision the group is kept.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import Field, ValidationError, model_validator

from actors.ledger import LedgerRow
from actors.ports import LeasedTask
from rewards.config import Section
from rewards.import_path import ImportPathError, load_callable
from rewards.task import Task
from rewards.trajectory import Context, Group, Trajectory
from rewards.verdict import FLOOR_STATUSES

FREE_RULE_ATTEMPTS = 8
"""Further samplings a rule that is not of this table may ask for on one ticket."""


@dataclass(frozen=True, slots=True)
class Keep:
    """The group is stored as it is."""


@dataclass(frozen=True, slots=True)
class Drop:
    """The group is not stored; its ticket goes back with the reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Redo:
    """The whole group is sampled again on the same ticket, in this context."""

    context: Context = Context()


@dataclass(frozen=True, slots=True)
class Grow:
    """`num` more members are sampled on the same ticket, in this context."""

    num: int
    context: Context = Context()


@dataclass(frozen=True, slots=True)
class Splice:
    """Donors take the places of the members with these ids."""

    donors: tuple[Trajectory, ...]
    victims: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fork:
    """A new task made from this one joins the stream."""

    task: Task


@dataclass(frozen=True, slots=True)
class Retire:
    """The prompt is not drawn any more."""

    prompt_id: str


@dataclass(frozen=True, slots=True)
class Stash:
    """The group is also kept in a named table, to be used again."""

    table: str


TerminalAction = Keep | Drop | Redo | Grow
AccompanyingAction = Splice | Fork | Retire | Stash
Action = TerminalAction | AccompanyingAction

Rule = Callable[[Group, LeasedTask, LedgerRow | None], Action | None]


class RuleError(ValueError):
    """A rule that cannot be applied: unknown, wrongly configured, or asking for what nobody does."""


# -- rules ------------------------------------------------------------------------------------------------------------


class ComponentOptions(Section):
    component: str | None = None
    """Named part of the reward to look at, e.g. the accuracy beside a length penalty; None is the whole score."""


class ConstantOptions(ComponentOptions):
    tolerance: float = Field(default=1e-6, ge=0)
    """Scores this close together (largest minus smallest, reward units) count as equal."""


class UnscoredOptions(Section):
    min_scored: int = Field(default=2, ge=1)
    """Members that must have a score; a group with fewer members must have all of them scored."""


class RateOptions(ComponentOptions):
    low: float = Field(default=0.0, ge=0, le=1)
    """Groups with a smaller share of right answers are too hard."""
    high: float = Field(default=1.0, ge=0, le=1)
    """Groups with a larger share of right answers are too easy."""

    @model_validator(mode="after")
    def _low_is_not_above_high(self) -> RateOptions:
        if self.low > self.high:
            raise ValueError(f"low={self.low} is above high={self.high}, so every group would be dropped: swap them")
        return self


class RedoOptions(ComponentOptions):
    max: int = Field(ge=1)
    """How often one ticket's group may be sampled again."""


class GrowOptions(ComponentOptions):
    num: int = Field(ge=1)
    """Members added each time."""
    max: int = Field(ge=1)
    """How often one ticket's group may grow."""


def drop_constant(
    group: Group, leased: LeasedTask, row: LedgerRow | None, *, component: str | None, tolerance: float
) -> Drop | None:
    """Drops a group whose scored members all earned the same: it carries no group-relative gradient.

    With a shaped reward name the component that means success: a length penalty makes scores of an all-right group
    differ that dynamic sampling is meant to drop. With fewer than two scores nothing can be compared.

    Source: DAPO, arXiv:2503.14476, dynamic sampling (by accuracy).
    """
    values = _values(group, component)
    if len(values) < 2 or max(values) - min(values) > tolerance:
        return None
    return Drop("constant")


def drop_unscored(group: Group, leased: LeasedTask, row: LedgerRow | None, *, min_scored: int) -> Drop | None:
    """Drops a group of which too few members could be judged."""
    return Drop("unscored") if group.num_scored < min(min_scored, len(group.trajectories)) else None


def drop_rate(
    group: Group, leased: LeasedTask, row: LedgerRow | None, *, component: str | None, low: float, high: float
) -> Drop | None:
    """Keeps groups whose share of right answers (above 0) among the scored ones lies in [low, high]."""
    values = _values(group, component)
    if not values:
        return None
    rate = sum(value > 0 for value in values) / len(values)
    if rate < low:
        return Drop("too_hard")
    return Drop("too_easy") if rate > high else None


def redo_failed(
    group: Group, leased: LeasedTask, row: LedgerRow | None, *, component: str | None, max: int
) -> Redo | None:
    """Samples a group again in which every scored answer is wrong (0 or below), at most `max` times."""
    return Redo(leased.context) if _all_wrong(group, component) and group.history.get("redo", 0) < max else None


def grow_failed(
    group: Group, leased: LeasedTask, row: LedgerRow | None, *, component: str | None, num: int, max: int
) -> Grow | None:
    """Adds members to a group in which every scored answer is wrong (0 or below), at most `max` times."""
    if not _all_wrong(group, component) or group.history.get("grow", 0) >= max:
        return None
    return Grow(num, leased.context)


RULES: dict[str, tuple[Callable[..., Action | None], type[Section]]] = {
    "drop_constant": (drop_constant, ConstantOptions),
    "drop_rate": (drop_rate, RateOptions),
    "drop_unscored": (drop_unscored, UnscoredOptions),
    "grow_failed": (grow_failed, GrowOptions),
    "redo_failed": (redo_failed, RedoOptions),
}
"""Built-in rules, by the name a config uses, with the options each takes."""


def _all_wrong(group: Group, component: str | None) -> bool:
    values = _values(group, component)
    return bool(values) and all(value <= 0 for value in values)


def _values(group: Group, component: str | None) -> list[float]:
    """Scores, or scores of one component, of the members that have one.

    Raises:
        RuleError: an answer was judged, but not by this component.
    """
    verdicts = [t.verdict for t in group.trajectories if t.verdict is not None and t.verdict.score is not None]
    values = []
    for verdict in verdicts:
        if component is None or (verdict.status in FLOOR_STATUSES and component not in verdict.components):
            value = verdict.score  # a fault of the model before any component could look: the floor counts for all
        elif component in verdict.components:
            value = verdict.components[component]
        else:
            raise RuleError(
                f"group {group.group_id}: a rule looks at the reward component {component!r}, but the verdicts have "
                f"{sorted(verdict.components) or 'none'}. Name one of reward.components."
            )
        if value is not None:
            values.append(value)
    return values


# -- the finisher -----------------------------------------------------------------------------------------------------


class Finisher:
    """Applies rules to scored groups, in order. Pure: the same group gets the same action, also after a crash.

    Args:
        rules: names of RULES or import paths `my_pkg.rules:name`, or mappings {"rule": name, option: value, ...}.

    Raises:
        RuleError: a rule is not known, its options are wrong, or it says that it may return an action that no box of
            this graph carries out.
    """

    def __init__(self, rules: Sequence[str | Mapping[str, Any]] = ()) -> None:
        self._rules = [_resolve(*_named(entry)) for entry in rules]

    @property
    def max_attempts(self) -> int:
        """Samplings one ticket may take, the first included."""
        return 1 + sum(rule.max_resamplings for rule in self._rules)

    def terminal_action(self, group: Group, leased: LeasedTask) -> TerminalAction:
        """What becomes of the group.

        Raises:
            RuleError: a rule answers with something that cannot be done.
        """
        for rule in self._rules:
            action = rule.apply(group, leased, leased.row)
            if action is not None:
                return _checked(action, rule.name, leased)
        return Keep()


@dataclass(frozen=True, slots=True)
class _Rule:
    name: str
    apply: Rule
    max_resamplings: int


def _named(entry: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(entry, str):
        return entry, {}
    options = dict(entry)
    name = options.pop("rule", None)
    if not isinstance(name, str):
        raise RuleError(f"rollout.rules: {dict(entry)} names no rule; write {{'rule': 'drop_constant', ...}}")
    return name, options


def _resolve(name: str, options: dict[str, Any]) -> _Rule:
    if name in RULES:
        function, section = RULES[name]
        options = _validated(name, section, options)
        max_resamplings = options.get("max", 0)
    else:
        function = _load(name, options)
        max_resamplings = FREE_RULE_ATTEMPTS
    _refuse_unexecuted(name, function)
    return _Rule(name, partial(function, **options), max_resamplings)


def _validated(name: str, section: type[Section], options: dict[str, Any]) -> dict[str, Any]:
    try:
        return section.model_validate(options).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join([name, *map(str, first["loc"])])
        raise RuleError(f"rollout.rules: {place}: {first['msg'].removeprefix('Value error, ')}") from error


def _load(path: str, options: Mapping[str, Any]) -> Callable[..., Any]:
    """The function an import path names, once it is known to take the options."""
    try:
        function = load_callable(path, purpose="rule", known_names=RULES)
    except ImportPathError as error:
        raise RuleError(f"rollout.rules: {error}") from error
    try:
        inspect.signature(function).bind(None, None, None, **options)
    except TypeError as error:
        raise RuleError(
            f"rollout.rules: {path} cannot be called as (group, leased, row, **options) with options {dict(options)}: "
            f"{error}. Its signature is {inspect.signature(function)}"
        ) from error
    return function


def _refuse_unexecuted(name: str, function: Callable[..., Any]) -> None:
    """Reads the return annotation; a function without a readable one is checked when it answers."""
    try:
        returned = typing.get_type_hints(function).get("return")
    except Exception:  # an annotation is an expression of someone else's and may do anything
        return
    promised = {returned, *typing.get_args(returned)} & set(typing.get_args(AccompanyingAction))
    if promised:
        raise RuleError(_unexecuted(name, sorted(action.__name__ for action in promised)))


def _unexecuted(name: str, actions: Sequence[str]) -> str:
    return (
        f"rollout.rules: {name} may return {' or '.join(actions)}, which no box of this run carries out, so it would "
        "be lost. Return Keep, Drop, Redo, Grow or None (TerminalAction | None), or leave the rule out."
    )


def _checked(action: Any, name: str, leased: LeasedTask) -> TerminalAction:
    if isinstance(action, AccompanyingAction):
        raise RuleError(_unexecuted(name, [type(action).__name__]))
    if not isinstance(action, TerminalAction):
        raise RuleError(f"rollout.rules: {name} returned {action!r}, which is not an action; return one or None")
    if isinstance(action, Redo | Grow) and action.context != leased.context:
        raise RuleError(
            f"rollout.rules: {name} asks for context {action.context.kind!r}, but prompts are rendered as they were "
            f"leased ({leased.context.kind!r}), so the record would name a context nobody saw. Use leased.context."
        )
    if isinstance(action, Grow) and action.num < 1:
        raise RuleError(f"rollout.rules: {name} asks to grow by {action.num} members; ask for at least 1")
    return action
