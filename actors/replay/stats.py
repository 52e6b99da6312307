"""The replay cache's numbers for dashboards: flat names, counters of the run and current levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from actors.replay.quotas import LIVE
from actors.replay.records import ACCEPTED
from actors.replay.state import ReplayState

_OF_THE_RUN = ("steps_committed", "steps_sealed", "lease_epoch", "leases", "rollbacks")
"""Numbers every shard counts for itself."""


def added(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Numbers of several shards as those of one cache."""
    values: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            once = name in _OF_THE_RUN or name.startswith("passes/")
            values[name] = max(values.get(name, 0), value) if once else values.get(name, 0) + value
    return values


def stats_of(state: ReplayState, frozen_sources: Sequence[str], calls: Mapping[str, int]) -> dict[str, float]:
    """Names of one level are fixed; `group/detail` names appear with what they count.

    groups/STATUS/SOURCE are accepted groups by state, terminal ones since the run began; dropped/SOURCE/REASON/LENGTH
    are refused and evicted ones; tickets/FATE are returned tickets; leased_age/AGE are live groups by age at hand-out;
    passes/SOURCE is how often a frozen source was gone through; calls/KIND are repeated and late calls.
    """
    levels = {
        "steps_committed": state.steps_committed,
        "steps_sealed": state.sealed_through + 1,
        "lease_epoch": state.epoch,
        "groups_accepted": state.counters["accepted"],
        "groups_refused": state.counters["refused"],
        "groups_adopted": state.counters["adopted"],
        "tickets_issued": state.counters["tickets_issued"],
        "tickets_outstanding": len(state.tickets),
        "leases": state.counters["leases"],
        "rollbacks": state.counters["rollbacks"],
        "held_bytes": state.held_bytes,
        "memory_bytes": state.payloads.memory_bytes,
        "groups_on_disk_only": state.payloads.num_cold,
        "blocks_spilled": state.payloads.num_spilled,
        "blocks_fetched": state.payloads.num_fetched,
    }
    groups = {f"groups/{s}/{source}": state.num(s, source) for source in (LIVE, *frozen_sources) for s in ACCEPTED}
    return {
        **levels,
        **groups,
        **{f"dropped/{what}": num for what, num in state.drops.items()},
        **{f"tickets/{fate}": num for fate, num in state.ticket_fates.items()},
        **{f"leased_age/{age}": num for age, num in sorted(state.ages.items())},
        **{f"passes/{source}": state.turns[source] for source in frozen_sources},
        **{f"calls/{name}": num for name, num in calls.items()},
    }
