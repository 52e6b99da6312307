"""May another group be started, collected, used again?

Live groups: admission by what coming batches need; the guarantee is the age gate at hand-out. Collected ones: Reverb's
two inequalities (google-deepmind/reverb, rate_limiters.py) on I collected groups and S trainings, at ratio rho:

    used again    size >= min_groups  and  I rho - S - n >= rho min_groups - slack
    collected     size + 1 <= min_groups  or  (I + 1) rho - S <= rho min_groups + slack

so that in the long run S stays within `slack` of rho (I - min_groups). Imports count towards the size alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor

from actors.replay.config import TableConfig


@dataclass(frozen=True, slots=True)
class Supply:
    """Live experience that exists or is being made.

    Attributes:
        consumed: live groups the committed steps of the surviving history took.
        stored: uses the ready and leased live groups are still good for (with single use: their number).
        num_groups: ready and leased live groups.
        running: outstanding tickets by the step their group is due at.
        uses_per_group: how often one live group may be trained on.
    """

    consumed: int
    stored: int
    num_groups: int
    running: Mapping[int, int]
    uses_per_group: int = 1

    @property
    def num_running(self) -> int:
        return sum(self.running.values())


@dataclass(frozen=True, slots=True)
class Admission:
    """The answer to one request: the step a new group would be due at, or None and why not."""

    due: int | None
    reason: str


def admit(supply: Supply, demand: Sequence[int], steps_committed: int, too_large: str = "") -> Admission:
    """Whether one more live group may be started, and for which step.

    A group is started only when one of the steps `steps_committed .. steps_committed + max_age` can train on it:

        accepted + running <= (max_age + steps_committed + 1) * fresh      (AReaL, arXiv:2505.24298)

    with what the committed steps took subtracted on both sides, so that groups lost to age, filters or failed steps
    give their place back, a restart cannot cause a burst, and preloaded sources never count. `fresh` may differ from
    step to step (fractional quotas, exhausted donors), so the bound is the running total.

    The group is due at the first step that is not supplied yet. Its ticket then asks for weights young enough for
    that step, and a step whose groups were dropped gets replacements that may start at once.

    Args:
        demand: live groups each of these steps takes, the next step first.
        too_large: why nothing is started ahead of its batch; empty when there is room.
    """
    running = supply.num_running * supply.uses_per_group
    if too_large and supply.num_groups + supply.num_running >= demand[0]:
        return Admission(None, too_large)
    if supply.stored + running < sum(demand):
        return Admission(_first_unsupplied(supply, demand, steps_committed), "")
    if demand[0] and supply.num_groups + supply.num_running < demand[0]:
        return Admission(steps_committed, "")  # a batch takes each group once, however many uses it has left
    return Admission(None, _reason(supply, sum(demand), len(demand) - 1, steps_committed))


def _first_unsupplied(supply: Supply, demand: Sequence[int], steps_committed: int) -> int:
    needed = 0
    for due, groups in enumerate(demand, start=steps_committed):
        needed += groups
        running = sum(n for step, n in supply.running.items() if step <= due)
        if supply.stored + running * supply.uses_per_group < needed:
            return due
    raise AssertionError("the last step sees all that is running, and together they fall short")


def _reason(supply: Supply, total: int, max_age: int, steps_committed: int) -> str:
    if total == 0:
        return "the quotas leave nothing to live rollouts: no group is needed"
    accepted = supply.consumed + supply.stored
    return (
        f"{accepted} live groups accepted + {supply.num_running * supply.uses_per_group} running reach the bound of "
        f"{supply.consumed + total} = (max_age {max_age} + {steps_committed} steps committed + 1) x fresh groups per "
        f"update; waiting for step {steps_committed} to be committed or a group to be dropped"
    )


@dataclass(slots=True, kw_only=True)
class Reuse:
    """The counts of one collected table since its rule was set.

    Attributes:
        rule: min_groups, uses_per_insert and slack as text, to notice that they were changed.
    """

    rule: list[str]
    inserted: int
    sampled: int


def rule_of(table: TableConfig) -> list[str]:
    return [str(table.min_groups), str(table.uses_per_insert), str(table.slack)]


def rebased(table: TableConfig, size: int) -> Reuse:
    """Counts for a rule that begins with a table of this size: as if the groups above min_groups had been used as often
    as the rule wants, so that neither side has a debt to work off."""
    ahead = max(0, size - table.min_groups)
    return Reuse(rule=rule_of(table), inserted=size, sampled=floor((table.uses_per_insert or 0) * ahead))


def usable(table: TableConfig, inserted: int, sampled: int, size: int) -> int | None:
    """Trainings that may be handed out now; None for any number."""
    if size < table.min_groups:
        return 0
    if table.uses_per_insert is None:
        return None
    lowest = table.uses_per_insert * table.min_groups - table.slack
    return max(0, floor(inserted * table.uses_per_insert - sampled - lowest))


def may_collect(table: TableConfig, inserted: int, sampled: int, size: int, share: Fraction = Fraction(1)) -> bool:
    """Args: share: of slack and min_groups that is this shard's."""
    if table.uses_per_insert is None or size + 1 <= table.min_groups * share:
        return True
    highest = (table.uses_per_insert * table.min_groups + table.slack) * share
    return (inserted + 1) * table.uses_per_insert - sampled <= highest


def why_not_used(source: str, table: TableConfig, inserted: int, sampled: int, size: int) -> str:
    """Which side of the rule holds the table back, and by how much; empty when it does not."""
    if size < table.min_groups:
        return f"{source} waits for {table.min_groups - size} more groups (min_groups {table.min_groups})"
    if usable(table, inserted, sampled, size) == 0:
        wanted = (table.uses_per_insert or 0) * (inserted - table.min_groups)
        return (
            f"{source} was trained on {sampled} times, {sampled - wanted} ahead of {table.uses_per_insert} uses per "
            f"collected group; waiting for new ones"
        )
    return ""
