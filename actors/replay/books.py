"""The replay cache's state beside its log: events are written, then applied; blocks are stored, found and moved."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import asdict
from typing import TypeVar

from actors.config import ReplayConfig
from actors.replay.config import TableConfig
from actors.replay.limiter import rebased, rule_of
from actors.replay.log import ReplayLog
from actors.replay.payloads import Payloads
from actors.replay.quotas import LIVE, QuotaPlan
from actors.replay.records import Event
from actors.replay.state import ReplayState
from actors.replay.tables import Table
from rewards.codec import payload_digest
from rewards.trajectory import Source

MAX_REMEMBERED = 4096
"""Refused groups a repeated put is recognised for, and withdrawn tickets whose late groups are told why; beyond that
the unknown ticket refuses them."""

DURABLE = frozenset({"base", "opened", "committed", "sealed", "rolled_back"})
"""Events a learner or a later process relies on after a power cut."""

Value = TypeVar("Value")


class Books:
    """What `ReplayCore` decides upon. Every change is first written to the log and then applied, so a failed write
    changes nothing."""

    def __init__(
        self,
        config: ReplayConfig,
        *,
        seed: int,
        log: ReplayLog | None,
        shard: int = 0,
        incarnation: int | None = None,
        now: float = 0.0,
    ) -> None:
        """Restores what the log remembers.

        Args:
            incarnation: start of the run this process belongs to. When the log was written in the same one, only this
                process was replaced: those who hold tickets and the lease still live, so both stay theirs. Otherwise,
                and without it, they are void.
            now: tickets and a lease that stay have their whole time again from here.

        Raises:
            CorruptLogError: its history is damaged.
        """
        self.config = config
        self.plan = QuotaPlan(config.groups_per_update, {Source(s).value: f for s, f in config.quotas.items()})
        self._tables = {s.value: config.tables.get(s.value, TableConfig()) for s in Source}
        blocks = None if log is None else log.blocks
        self.state = ReplayState(
            lambda source: Table(self._tables.get(source, TableConfig()), source, seed, shard),
            Payloads(config.memory_bytes, lambda blob: None if blocks is None else blocks.read(blob)),
        )
        self.calls: Counter[str] = Counter()
        """Repeated and late calls since this process began."""
        self._log = log
        self._refused: OrderedDict[str, tuple[str, str]] = OrderedDict()
        """Digest and reason of refused groups."""
        self._withdrawn: OrderedDict[str, str] = OrderedDict()
        """Why tickets were taken back from their holders."""
        self._ticket_deadlines: dict[str, float] = {}
        self._lease_deadline: float | None = None
        self._restore(incarnation)
        self._ticket_deadlines.update(dict.fromkeys(self.state.tickets, now + config.ticket_timeout_s))
        if self.state.lease is not None:
            self._lease_deadline = now + config.lease_timeout_s

    def snapshot(self) -> str:
        """Makes everything up to now durable and drops what nobody needs; where, or an empty text without a log.

        Blocks that are still needed move out of files in which they are the smaller part, and a journal above its
        limit begins anew with the state it has led to.
        """
        if self._log is None:
            return ""
        self._move_blocks(self._log)
        if self.config.journal_bytes is not None and self._log.journal.end > self.config.journal_bytes:
            self._log.begin_anew(
                self.state.to_json(), max_age=self.config.max_age, groups_per_update=self.config.groups_per_update
            )
        needed = (entry.blob for entry in self.state.held() if entry.blob is not None)
        return str(self._log.snapshot(self.state.to_json(), needed))

    def _move_blocks(self, log: ReplayLog) -> None:
        held = [entry for entry in self.state.held() if entry.blob is not None]
        sparse = log.blocks.sparse(entry.blob for entry in held if entry.blob is not None)
        if not sparse:
            return
        moved = {}
        for entry in held:
            if entry.blob is not None and entry.blob[0] in sparse:
                data = log.blocks.read(entry.blob)
                if data is not None and payload_digest(data) == entry.digest:
                    moved[entry.group_id] = log.blocks.append(series_of(entry.source), data)
        if moved:
            log.blocks.sync()
            self._record({"kind": "moved", "blobs": moved})

    def _record(self, event: Event, payload: bytes | None = None) -> None:
        """Raises OSError when the event cannot be written; then nothing has changed."""
        if self._log is not None:
            self._log.append(event, durable=event["kind"] in DURABLE)
        self._apply(event, payload)
        self.state.check()

    def _apply(self, event: Event, payload: bytes | None = None) -> None:
        self.state.apply(event, payload)
        if event["kind"] == "refused":
            remember(self._refused, event["group"], (event["digest"], event["reason"]))

    def _restore(self, incarnation: int | None) -> None:
        state = self.state
        if self._log is not None:
            recovered = self._log.recover()
            if recovered.state is not None:
                state.from_json(recovered.state)
            for event in recovered.events:
                self._apply(event)
        lost = [entry.group_id for entry in state.held() if not self._read_back(entry.group_id)]
        held = list(state.tickets)
        in_place = incarnation is not None and incarnation == state.incarnation and not lost
        self._record(
            {
                "kind": "opened", "boot": state.boot + 1, "epoch": state.epoch + 1,
                "incarnation": -1 if incarnation is None else incarnation, "in_place": in_place,
                "max_age": self.config.max_age, "groups_per_update": self.config.groups_per_update,
            }
        )  # fmt: skip
        if not in_place:
            self._withdraw(held, "restart")
        for source, table in self._tables.items():
            row = state.reuse.get(source)
            if table.is_rate_limited and (row is None or row.rule != rule_of(table)):
                new = rebased(table, state.num_open(source))
                self._record({"kind": "rule", "source": source, **asdict(new)})
        if lost:
            self._record({"kind": "lost", "groups": lost})
        self._sweep()

    def _read_back(self, group_id: str) -> bool:
        """Checks a packed block and notes where it lies; False when it is gone or another one."""
        entry = self.state.entries[group_id]
        data = self._log.blocks.read(entry.blob) if self._log is not None and entry.blob is not None else None
        if data is None or payload_digest(data) != entry.digest:
            return False
        self.state.payloads.add(group_id, data, entry.blob)
        return True

    def _sweep(self) -> None:
        """Evicts READY groups no batch may take any more, which makes room for new ones."""
        state = self.state
        dated = state.ready_by_version.items()
        too_old = [g for (source, version), ids in dated if self._is_too_old(version, source) for g in ids]
        if too_old:
            too_old.sort(key=lambda group_id: state.entries[group_id].seq)
            self._record({"kind": "evicted", "groups": too_old, "reason": "too_old"})

    def _is_too_old(self, version: int, source: str = LIVE) -> bool:
        bound = self.config.max_age if source == LIVE else self._tables[source].max_age
        return bound is not None and self.state.steps_committed - self.state.versions[version] > bound

    def _withdraw(self, ticket_ids: Iterable[str], reason: str) -> None:
        for ticket_id in ticket_ids:
            remember(self._withdrawn, ticket_id, reason)
            self._ticket_deadlines.pop(ticket_id, None)


def remember(memory: OrderedDict[str, Value], key: str, value: Value) -> None:
    """Forgets the oldest beyond MAX_REMEMBERED."""
    memory[key] = value
    if len(memory) > MAX_REMEMBERED:
        memory.popitem(last=False)


def series_of(source: str) -> str:
    """Blocks of one lifetime lie in files of their own, so that whole files become free."""
    return source if source in ("live", "own_past") else "frozen"
