"""Finisher: what becomes of a scored group, by the recipe's rules.

A rule is a pure function `(group, leased task, ledger row or None, **options) -> action, tuple of actions, or None`.
The first terminal action (Keep, Drop, Redo, Grow) decides; without one the group is kept. Splice changes the group for
the rules after it; Fork, Retire and Stash accompany the decision, and count only when the group is not sampled further.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pydantic import ValidationError

from actors.contexts.render import KINDS
from actors.ports import LeasedTask
from actors.rules.actions import (
    Action,
    Drop,
    Fork,
    Grow,
    Keep,
    Redo,
    Retire,
    Rule,
    RuleError,
    Splice,
    Stash,
    TerminalAction,
)
from actors.rules.table import RULES
from rewards.config import Section
from rewards.import_path import ImportPathError, load_callable
from rewards.trajectory import Context, Group, Trajectory

FREE_RULE_ATTEMPTS = 8
"""Further samplings a rule that is not of the table may ask for on one ticket."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one group.

    Attributes:
        action: Keep, Drop, Redo or Grow.
        group: the group with its donors; as it came when it is sampled further, so that no donor joins twice.
        stashes, forks, is_retired: what accompanies a group that is finished.
        refusal: why the replay cache did not take the group it was asked to keep.
    """

    action: TerminalAction
    group: Group
    stashes: tuple[Stash, ...] = ()
    forks: tuple[Fork, ...] = ()
    is_retired: bool = False
    refusal: str | None = None

    @property
    def fate(self) -> str:
        """Of a group that is not sampled further: stored, dropped:<reason> or refused:<reason>."""
        if self.refusal is not None:
            return f"refused:{self.refusal}"
        return f"dropped:{self.action.reason}" if isinstance(self.action, Drop) else "stored"


class Finisher:
    """Applies rules to scored groups, in order. Pure: the same group gets the same decision, also after a crash.

    Args:
        rules: names of RULES or import paths `my_pkg.rules:name`, or mappings {"rule": name, option: value, ...}.

    Raises:
        RuleError: a rule is not known, or its options are wrong.
    """

    def __init__(self, rules: Sequence[str | Mapping[str, Any]] = ()) -> None:
        self._rules = [_resolve(*_named(entry)) for entry in rules]

    @property
    def max_attempts(self) -> int:
        """Samplings one ticket may take, the first included."""
        return 1 + sum(rule.max_resamplings for rule in self._rules)

    def decide(self, group: Group, leased: LeasedTask) -> Decision:
        """What becomes of the group.

        Raises:
            RuleError: a rule answers with something that cannot be done.
        """
        current, terminal = group, None
        accompanying: list[Action] = []
        for rule in self._rules:
            answer = rule.apply(current, leased, leased.row)
            for action in answer if isinstance(answer, tuple) else () if answer is None else (answer,):
                _check(action, rule.name, current)
                if isinstance(action, Redo | Grow) and terminal is None:
                    return Decision(action, group)
                if isinstance(action, Splice) and terminal is None:
                    current = spliced(current, action)
                elif isinstance(action, TerminalAction):
                    terminal = terminal or action
                else:
                    accompanying.append(action)
        return Decision(
            terminal or Keep(),
            current,
            stashes=tuple(a for a in accompanying if isinstance(a, Stash)),
            forks=tuple(a for a in accompanying if isinstance(a, Fork)),
            is_retired=any(isinstance(a, Retire) for a in accompanying),
        )


def spliced(group: Group, splice: Splice) -> Group:
    """The group in which donors stand in the places of victims; donors beyond them come last.

    A donor becomes a member under an id of this group; its context keeps the id it had.
    """
    donors = [_as_member(donor, group, number) for number, donor in enumerate(splice.donors)]
    members: list[Trajectory] = []
    for member in group.trajectories:
        if member.trajectory_id not in splice.victims:
            members.append(member)
        elif donors:
            members.append(donors.pop(0))
    return replace(group, trajectories=(*members, *donors))


def _as_member(donor: Trajectory, group: Group, number: int) -> Trajectory:
    taken = sum(t.trajectory_id.startswith(f"{group.group_id}/donor-") for t in group.trajectories)
    return replace(
        donor,
        group_id=group.group_id,
        trajectory_id=f"{group.group_id}/donor-{taken + number}",
        sample_context=replace(donor.sample_context, reference=donor.trajectory_id),
    )


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
    if name not in RULES:
        return _Rule(name, partial(_load(name, options), **options), FREE_RULE_ATTEMPTS)
    function, section = RULES[name]
    options = _validated(name, section, options)
    resamples = 1 if name == "grow_hard" else options.get("max", 0)
    return _Rule(name, partial(function, **options), resamples)


def _validated(name: str, section: type[Section], options: dict[str, Any]) -> dict[str, Any]:
    try:
        checked = section.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join([name, *map(str, first["loc"])])
        raise RuleError(f"rollout.rules: {place}: {first['msg'].removeprefix('Value error, ')}") from error
    return {option: getattr(checked, option) for option in section.model_fields}


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


def _check(action: Any, name: str, group: Group) -> None:
    """Raises RuleError for an answer that is no action, or that nobody could carry out."""
    if not isinstance(action, Action):
        raise RuleError(f"rollout.rules: {name} returned {action!r}, which is not an action; return one or None")
    if isinstance(action, Redo | Grow | Fork):
        _check_context(action.context, name, group)
    if isinstance(action, Grow) and action.num < 1:
        raise RuleError(f"rollout.rules: {name} asks to grow by {action.num} members; ask for at least 1")
    ids = {t.trajectory_id for t in group.trajectories}
    named = action.victims if isinstance(action, Splice) else action.members if isinstance(action, Stash) else ()
    if strangers := set(named) - ids:
        raise RuleError(f"rollout.rules: {name} names {sorted(strangers)}, which are no members of {group.group_id}")
    if isinstance(action, Splice) and not action.donors and set(action.victims) == ids:
        raise RuleError(f"rollout.rules: {name} removes every member of {group.group_id}; return Drop instead")
    if isinstance(action, Retire) and action.prompt_id != group.prompt_id:
        raise RuleError(f"rollout.rules: {name} retires {action.prompt_id!r}, but the group is of {group.prompt_id!r}")


def _check_context(context: Context, name: str, group: Group) -> None:
    if context.kind not in KINDS:
        raise RuleError(
            f"rollout.rules: {name} asks for context {context.kind!r}, which nobody can show, so the record would name "
            f"a context nobody saw. Known kinds: {', '.join(sorted(KINDS))}"
        )
    if context.kind == "feedback" and context.reference not in {t.trajectory_id for t in group.trajectories}:
        raise RuleError(
            f"rollout.rules: {name} asks for feedback on {context.reference!r}, which is no member of {group.group_id}"
        )
