"""What rules read of a scored group."""

from __future__ import annotations

from collections.abc import Sequence

from actors.rules.actions import RuleError
from rewards.trajectory import Group, Trajectory
from rewards.verdict import FLOOR_STATUSES


def value_of(member: Trajectory, component: str | None) -> float | None:
    """Score of a member, or of one component of it; None where it could not be judged.

    Raises:
        RuleError: the answer was judged, but not by this component.
    """
    verdict = member.verdict
    if verdict is None or verdict.score is None:
        return None
    if component is None or (verdict.status in FLOOR_STATUSES and component not in verdict.components):
        return verdict.score  # a fault of the model before any component could look: the floor counts for all
    if component not in verdict.components:
        raise RuleError(
            f"group {member.group_id}: a rule looks at the reward component {component!r}, but the verdicts have "
            f"{sorted(verdict.components) or 'none'}. Name one of reward.components."
        )
    return verdict.components[component]


def values(members: Sequence[Trajectory], component: str | None) -> list[float]:
    """Scores, or scores of one component, of the members that have one."""
    found = (value_of(member, component) for member in members)
    return [value for value in found if value is not None]


def success_rate(group: Group, component: str | None) -> float | None:
    """Share of right answers among the scored ones of the policy itself; None without any.

    Right is what the reward's success component says, or a score above 0 of the named component.
    """
    if component is None:
        judged = [member for member in group.own_members if member.score is not None]
        return sum(member.is_right for member in judged) / len(judged) if judged else None
    scored = values(group.own_members, component)
    return sum(value > 0 for value in scored) / len(scored) if scored else None


def all_wrong(group: Group, component: str | None) -> bool:
    """Every scored answer of the policy itself is wrong (0 or below)."""
    return success_rate(group, component) == 0.0
