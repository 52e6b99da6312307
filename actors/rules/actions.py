"""What a rule may ask for. The first terminal action decides; the others may accompany it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from actors.ledger import LedgerRow
from actors.ports import LeasedTask
from rewards.task import Task
from rewards.trajectory import Context, Group, Trajectory


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
    """Donors take the places of the members with these ids; left over places disappear, left over donors are added.

    Rules after it see the group as it is then.
    """

    donors: tuple[Trajectory, ...]
    victims: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fork:
    """A new task made from this one joins the stream; its prompt is what the task's is in this context.

    `attempt` names the member that a context of kind feedback is about.
    """

    task: Task
    context: Context = Context()
    attempt: str | None = None


@dataclass(frozen=True, slots=True)
class Retire:
    """The prompt is not drawn any more, apart from re-entry probes."""

    prompt_id: str


@dataclass(frozen=True, slots=True)
class Stash:
    """Members are also kept in a named table of their prompt, to be donors later; no names: all of them."""

    table: str
    members: tuple[str, ...] = ()


TerminalAction = Keep | Drop | Redo | Grow
AccompanyingAction = Splice | Fork | Retire | Stash
Action = TerminalAction | AccompanyingAction

Rule = Callable[[Group, LeasedTask, LedgerRow | None], Action | tuple[Action, ...] | None]
"""A tuple holds actions that belong together, such as several forks."""


class RuleError(ValueError):
    """A rule that cannot be applied: unknown, wrongly configured, or asking for what nobody does."""
