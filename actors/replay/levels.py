"""The few numbers admission and quotas decide by: of one replay core, or summed over the shards of a cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from actors.config import ReplayConfig
from actors.replay.limiter import Admission, Supply, admit, usable, why_not_used
from actors.replay.quotas import LIVE, QuotaPlan, compose
from actors.replay.records import OPEN, Status
from actors.replay.state import ReplayState


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """Nothing here names a group, so the numbers of shards add up.

    Attributes:
        boot, seq: incarnation of the core, and its events so far; the higher pair is the newer.
        live_consumed: live groups the committed steps took.
        ready, opened: groups that can be handed out, and those with the leased ones, by source.
        uses: trainings left in open groups with a budget, by source.
        leased: groups of the outstanding batch by source; None without one.
        due: outstanding tickets by the step they are due at.
        num_unsealed: trained groups kept until a checkpoint covers them.
        collected, reused: groups collected and trainings of them since the table's rule was set, by source.
    """

    boot: int
    seq: int
    steps_committed: int
    num_leases: int
    live_consumed: int
    ready: Mapping[str, int]
    opened: Mapping[str, int]
    uses: Mapping[str, int]
    leased: Mapping[str, int] | None
    due: Mapping[int, int]
    held_bytes: int
    num_unsealed: int
    collected: Mapping[str, int]
    reused: Mapping[str, int]

    @property
    def num_running(self) -> int:
        return sum(self.due.values())


def levels_of(state: ReplayState, budgets: Mapping[str, int | None]) -> Levels:
    """Args: budgets: trainings of one group by source; None where there is no limit."""
    opened = {source: sum(state.num(status, source) for status in OPEN) for source in state.queues}
    return Levels(
        boot=state.boot,
        seq=state.num_events,
        steps_committed=state.steps_committed,
        num_leases=state.counters["leases"],
        live_consumed=state.live_consumed,
        ready=state.num_ready(),
        opened=opened,
        uses={source: state.uses_left[source] for source in opened if budgets.get(source) is not None},
        leased=None if state.lease is None else Counter(state.entries[g].source for g in state.lease.group_ids),
        due=dict(state.due),
        held_bytes=state.held_bytes,
        num_unsealed=state.num(Status.COMMITTED),
        collected={source: row.inserted for source, row in state.reuse.items()},
        reused={source: row.sampled for source, row in state.reuse.items()},
    )


def total(levels: Iterable[Levels]) -> Levels:
    """Of all shards together; they are at the same step unless a commit was cut short."""
    parts = list(levels)
    leases = [part.leased for part in parts if part.leased is not None]
    return Levels(
        boot=sum(part.boot for part in parts),
        seq=sum(part.seq for part in parts),
        steps_committed=min(part.steps_committed for part in parts),
        num_leases=max(part.num_leases for part in parts),
        live_consumed=sum(part.live_consumed for part in parts),
        ready=_added(part.ready for part in parts),
        opened=_added(part.opened for part in parts),
        uses=_added(part.uses for part in parts),
        leased=_added(leases) if leases else None,
        due=_added(part.due for part in parts),
        held_bytes=sum(part.held_bytes for part in parts),
        num_unsealed=sum(part.num_unsealed for part in parts),
        collected=_added(part.collected for part in parts),
        reused=_added(part.reused for part in parts),
    )


def admission(levels: Levels, config: ReplayConfig, plan: QuotaPlan) -> Admission:
    """Whether another live group may be started now, and what is in the way."""
    supply = Supply(
        consumed=levels.live_consumed,
        stored=levels.uses.get(LIVE, 0),
        num_groups=levels.opened.get(LIVE, 0),
        running=levels.due,
        uses_per_group=config.max_uses.get("live", 1),
    )
    demand = live_demand(levels, plan, config)
    return admit(supply, demand, levels.steps_committed, _too_large(levels, config.held_bytes))


def ready_within_rules(levels: Levels, config: ReplayConfig) -> dict[str, int]:
    """Groups by source the next batch may take."""
    limits = _usable(levels, config)
    return {source: min(num, limits.get(source, num)) for source, num in levels.ready.items()}


def held_back(levels: Levels, config: ReplayConfig) -> list[str]:
    """Why tables that hold groups are not drawn from."""
    reasons = (
        why_not_used(source, table, *_counts(levels, source))
        for source, table in config.tables.items()
        if table.is_rate_limited and source in config.quotas
    )
    return [reason for reason in reasons if reason]


def live_demand(levels: Levels, plan: QuotaPlan, config: ReplayConfig) -> list[int]:
    """Live groups each of the next max_age + 1 batches takes, those that replace exhausted donors included."""
    first = levels.steps_committed
    groups = {source: levels.opened.get(source, 0) for source in plan.sources}
    uses = {source: num for source, num in levels.uses.items() if source in groups}
    for source, num in _usable(levels, config).items():
        uses[source] = min(num, uses.get(source, num))
    demand = []
    for step in range(first, first + config.max_age + 1):
        if step == first and levels.leased is not None:
            take = levels.leased
        else:
            ready = {source: min(num, uses.get(source, num)) for source, num in groups.items()}
            take = compose(plan, step, {**ready, LIVE: plan.groups_per_update}).take
        demand.append(take.get(LIVE, 0))
        for source in uses:
            uses[source] -= take.get(source, 0)
    return demand


def _usable(levels: Levels, config: ReplayConfig) -> dict[str, int]:
    limits = {}
    for source, table in config.tables.items():
        num = usable(table, *_counts(levels, source)) if table.is_rate_limited and source in config.quotas else None
        if num is not None:
            limits[source] = num
    return limits


def _counts(levels: Levels, source: str) -> tuple[int, int, int]:
    return levels.collected.get(source, 0), levels.reused.get(source, 0), levels.opened.get(source, 0)


def _too_large(levels: Levels, limit: int | None) -> str:
    """Why no group is started before its batch waits for it; empty while the held groups are within their limit."""
    if limit is None or levels.held_bytes <= limit:
        return ""
    return (
        f"the held groups take {levels.held_bytes} bytes, above replay.held_bytes={limit}; waiting for the checkpoint "
        f"that covers {levels.num_unsealed} trained groups, or for a batch that lacks live ones"
    )


def _added(parts: Iterable[Mapping]) -> dict:
    result: dict = {}
    for part in parts:
        for key, num in part.items():
            result[key] = result.get(key, 0) + num
    return result
