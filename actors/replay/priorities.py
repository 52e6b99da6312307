"""What makes a stored group worth drawing."""

from __future__ import annotations

import math
from collections.abc import Mapping

from actors.replay.config import TableConfig
from rewards.trajectory import Group


def initial_priority(group: Group, table: TableConfig) -> float | None:
    """Of a group that was never trained on in this table; None where only training can tell."""
    if table.order != "prioritised" or table.priority != "advantage":
        return None
    return mean_advantage(group)


def mean_advantage(group: Group) -> float:
    """Mean |score - mean score| over the scored members, in reward units; 0 when they are all equal or unknown."""
    scores = [score for score in group.scores if score is not None]
    if not scores:
        return 0.0
    mean = math.fsum(scores) / len(scores)
    return math.fsum(abs(score - mean) for score in scores) / len(scores)


def measured_priorities(
    measured: Mapping[str, Mapping[str, float]], trained: Mapping[str, str], tables: Mapping[str, TableConfig]
) -> tuple[dict[str, float], int]:
    """New priorities by group, and how many measurements cannot be one: of groups that were not trained on, negative
    or not finite.

    Args:
        measured: by group, numbers by name.
        trained: source by group.
        tables: by source.
    """
    priorities: dict[str, float] = {}
    num_ignored = 0
    for group_id, values in measured.items():
        table = tables.get(trained.get(group_id, ""))
        value = values.get(table.priority) if table is not None and table.order == "prioritised" else None
        is_usable = value is not None and math.isfinite(value) and value >= 0.0
        if value is not None and is_usable:
            priorities[group_id] = float(value)
        elif table is None or value is not None:
            num_ignored += 1
    return priorities, num_ignored
