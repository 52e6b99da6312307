"""The policy's own answers, kept for later: what of a trained group goes into the table `own_past`."""

from __future__ import annotations

from dataclasses import replace

from actors.replay.config import TableConfig
from rewards.trajectory import Group, Source

PREFIX = "past:"
"""Before the id of the group the answers come from."""


def past_group(group: Group, collect: str) -> Group | None:
    """The right answers of the policy itself, with the log-probs and versions they were sampled with; None without any.

    Args:
        group: live, just trained on.
        collect: `TableConfig.collect`.
    """
    own = group.own_members
    right = [member for member in own if member.is_right]
    if not right or (collect == "mixed" and len(right) == len(own)):
        return None
    group_id = f"{PREFIX}{group.group_id}"
    members = tuple(
        replace(member, group_id=group_id, trajectory_id=f"{group_id}/{number}", source=Source.OWN_PAST)
        for number, member in enumerate(right)
    )
    return replace(group, group_id=group_id, source=Source.OWN_PAST, trajectories=members, ticket_id=None)


def collects(table: TableConfig, has_quota: bool) -> bool:
    """Whether trained groups are looked through at all."""
    return has_quota and table.collect != "nothing"
