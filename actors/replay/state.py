"""What the replay cache knows, and how each event changes it.

Decisions are made in `core.py`; here an event that was decided is applied. Live operation and the replay of the log
run the same code, so a restored state is the state that was lost. No clock, no file, no waiting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from actors.replay.limiter import Reuse
from actors.replay.payloads import Payloads
from actors.replay.quotas import LIVE
from actors.replay.records import (
    ACCEPTED,
    HELD,
    OPEN,
    Entry,
    Event,
    InvariantError,
    LeaseRow,
    Status,
    StepRow,
    TicketRow,
    length_bucket,
)
from actors.replay.selectors import Candidate
from actors.replay.tables import Table

UNKNOWN_SOURCE = "unknown"


class ReplayState:
    """Everything that must survive a crash; changed only by `apply`.

    Args:
        make_queue: builds the table of a source.
        payloads: keeps the packed blocks of groups that may still be handed out; not part of a snapshot.
    """

    def __init__(self, make_queue: Callable[[str], Table], payloads: Payloads) -> None:
        self._make_queue = make_queue
        self.boot = 0
        self.incarnation = -1
        """Start of the run that opened the state last; -1 when it did not say."""
        self.epoch = 0
        self.steps_committed = 0
        self.sealed_through = -1
        self.num_seals = 0
        self.next_seq = 0
        self.versions: dict[int, int] = {}
        """Committed steps each announced policy version contains, along the surviving lineage."""
        self.tickets: dict[str, TicketRow] = {}
        self.entries: dict[str, Entry] = {}
        self.lease: LeaseRow | None = None
        self.history: dict[int, StepRow] = {}
        self.counters: Counter[str] = Counter()
        self.turns: Counter[str] = Counter()
        """The pass each source is in; frozen groups that arrive later join it."""
        self.statuses: Counter[str] = Counter()
        """Accepted groups by `status/source`; terminal ones stay counted when their entry is forgotten."""
        self.ticket_fates: Counter[str] = Counter()
        self.drops: Counter[str] = Counter()
        """Refused and evicted groups by `source/reason/length bucket`."""
        self.ages: Counter[int] = Counter()
        """Live groups by age at hand-out."""
        self.top_priorities: dict[str, float] = {}
        """The highest priority a group of each source ever had; one of unknown priority gets it, to be drawn soon."""
        self.payloads = payloads
        self.num_events = 0
        """Applied since this process began, those of the log included."""
        self.held_bytes = 0
        """Packed size of all HELD groups, wherever their blocks lie."""
        self.queues: dict[str, Table] = {}
        self.ready_by_version: dict[tuple[str, int], set[str]] = {}
        """READY groups by source and policy version, of those that have one."""
        self.reuse: dict[str, Reuse] = {}
        """Of tables with a rule for how often collected groups are used."""
        self.uses_left: Counter[str] = Counter()
        """Further trainings of all open groups with a budget, by source."""
        self.due: Counter[int] = Counter()
        """Outstanding tickets by the step they are due at."""
        self.live_consumed = 0
        """Live groups the committed steps of the surviving history took, dropped ones included."""

    # -- questions ------------------------------------------------------------------------------------------------

    def num(self, status: Status, source: str | None = None) -> int:
        """Accepted groups in a status, of one source or of all."""
        if source is not None:
            return self.statuses[f"{status}/{source}"]
        return sum(n for key, n in self.statuses.items() if key.startswith(f"{status}/"))

    def num_ready(self) -> dict[str, int]:
        return {source: len(queue) for source, queue in self.queues.items()}

    def num_open(self, source: str) -> int:
        return sum(self.num(status, source) for status in OPEN)

    def are_ready(self, group_ids: Iterable[str]) -> bool:
        return all(g in self.entries and self.entries[g].status is Status.READY for g in group_ids)

    def age(self, entry: Entry, step: int) -> int | None:
        """Committed steps between the oldest trained token and `step`; None for frozen sources."""
        return None if entry.oldest is None else step - self.versions[entry.oldest]

    def check(self) -> None:
        """Raises InvariantError when the books do not balance."""
        accepted = self.counters["accepted"] + self.counters["adopted"]
        by_status = {status.value: self.num(status) for status in ACCEPTED}
        if accepted != sum(by_status.values()):
            raise InvariantError(f"{accepted} groups were accepted, but their states are {by_status}")
        issued, returned = self.counters["tickets_issued"], self.counters["tickets_returned"]
        if issued != returned + len(self.tickets):
            raise InvariantError(f"{issued} tickets issued, {returned} returned, {len(self.tickets)} outstanding")
        leased, in_lease = self.num(Status.LEASED), len(self.lease.group_ids) if self.lease is not None else 0
        if leased != in_lease:
            raise InvariantError(f"{leased} groups are leased, but the outstanding lease holds {in_lease}")
        ready, listed = self.num(Status.READY), sum(self.num_ready().values())
        if ready != listed:
            raise InvariantError(f"{ready} groups are ready, but {listed} can be handed out")

    # -- events ---------------------------------------------------------------------------------------------------

    def apply(self, event: Event, payload: bytes | None = None) -> None:
        """Changes the state by one decided event; `payload` is the packed block of a stored group."""
        getattr(self, f"_on_{event['kind']}")(event)
        self.num_events += 1
        if payload is not None:
            self.payloads.add(event["group"], payload, event["blob"])

    def _on_opened(self, event: Event) -> None:
        self.boot, self.epoch = event["boot"], event["epoch"]
        self.incarnation = event.get("incarnation", -1)
        if not event.get("in_place"):
            self._take_all_back("restart")

    def _on_version(self, event: Event) -> None:
        self.versions[event["version"]] = event["step"]

    def _on_issued(self, event: Event) -> None:
        row = TicketRow(
            worker_id=event["worker"],
            group_size=event["size"],
            due=event["due"],
            min_step=event["min_step"],
            key=event.get("key", ""),
        )
        self.tickets[event["ticket"]] = row
        self.due[row.due] += 1
        self.counters["tickets_issued"] += 1

    def _on_returned(self, event: Event) -> None:
        self._return_ticket(event["ticket"], event["reason"])

    def _on_refused(self, event: Event) -> None:
        self.counters["refused"] += 1
        self._count_drop(event["source"], event["reason"], event["tokens"])
        if event["ticket"] in self.tickets:
            self._return_ticket(event["ticket"], f"refused:{event['reason']}")

    def _on_put(self, event: Event) -> None:
        source = event["source"]
        entry = Entry(
            group_id=event["group"],
            source=source,
            seq=self.next_seq,
            digest=event["digest"],
            ticket_id=event["ticket"],
            oldest=event["oldest"],
            num_tokens=event["tokens"],
            first_turn=0 if source == LIVE else self.turns[source],
            budget=event["budget"],
            blob=event["blob"],
            num_bytes=event.get("bytes", event["blob"][2] if event["blob"] else 0),
            prompt_id=event.get("prompt"),
            origin=event.get("origin"),
            sampled_at=event.get("sampled_at"),
            priority=self._priority(source, event.get("priority")),
        )
        if entry.ticket_id is not None:
            self._return_ticket(entry.ticket_id, "stored")
        self._add(entry, Status.READY, "accepted")
        if entry.origin is not None and source in self.reuse:
            self.reuse[source].inserted += 1

    def _on_leased(self, event: Event) -> None:
        self.lease = LeaseRow(
            lease_id=event["lease"],
            step=event["step"],
            epoch=event["epoch"],
            group_ids=list(event["groups"]),
            ages=dict(event["ages"]),
            shortfall=dict(event["shortfall"]),
        )
        self.counters["leases"] += 1
        for group_id in self.lease.group_ids:
            entry = self.entries[group_id]
            self.turns[entry.source] = max(self.turns[entry.source], entry.turn)
            self._change(entry, Status.LEASED)
        self.ages.update(self.lease.ages.values())

    def _on_lease_returned(self, event: Event) -> None:
        self._return_lease(event["reason"])

    def _on_committed(self, event: Event) -> None:
        lease, dropped = self.lease, dict(event["dropped"])
        if lease is None or lease.lease_id != event["lease"]:
            raise InvariantError(f"commit of lease {event['lease']}, but {lease} is outstanding")
        self.history[lease.step] = StepRow(
            lease_id=lease.lease_id,
            trained=[group_id for group_id in lease.group_ids if group_id not in dropped],
            dropped=dropped,
            num_live=sum(self.entries[group_id].source == LIVE for group_id in lease.group_ids),
        )
        self.live_consumed += self.history[lease.step].num_live
        self.lease = None
        self.steps_committed = lease.step + 1
        self.counters["commits"] += 1
        priorities = event.get("priorities", {})
        for group_id in self.history[lease.step].trained:
            entry = self.entries[group_id]
            if group_id in priorities:
                entry.priority = self._priority(entry.source, priorities[group_id])
            self._use(entry, lease.step)
        for group_id, reason in dropped.items():
            self._evict(self.entries[group_id], reason)

    def _on_evicted(self, event: Event) -> None:
        for group_id in event["groups"]:
            self._evict(self.entries[group_id], event["reason"])

    def _on_lost(self, event: Event) -> None:
        """Blocks could not be read back: trained groups leave memory early, the others are evicted."""
        for group_id in event["groups"]:
            entry = self.entries[group_id]
            if entry.status is Status.COMMITTED:
                self._change(entry, Status.SEALED)
            else:
                self._evict(entry, "lost")

    def _on_rule(self, event: Event) -> None:
        self.reuse[event["source"]] = Reuse(rule=event["rule"], inserted=event["inserted"], sampled=event["sampled"])

    def _on_moved(self, event: Event) -> None:
        for group_id, blob in event["blobs"].items():
            self.entries[group_id].blob = blob
            self.payloads.move(group_id, blob)

    def _on_base(self, event: Event) -> None:
        """The first event of a journal that began anew."""
        self.from_json(event["state"])

    def _on_sealed(self, event: Event) -> None:
        """Spent groups the checkpoint covers leave memory.

        Those closed before the previous seal are forgotten, unless they were preloaded: whoever preloads them again
        after a restart must find that they are spent.
        """
        self.sealed_through = event["step"]
        for entry in list(self.entries.values()):
            if entry.status is Status.COMMITTED and max(entry.uses) <= event["step"]:
                self._change(entry, Status.SEALED)
            elif entry.is_fresh and entry.closed_at is not None and entry.closed_at < self.num_seals:
                del self.entries[entry.group_id]
        self.num_seals += 1

    def _on_rolled_back(self, event: Event) -> None:
        """Returns to the history of a checkpoint, whose manifest is the authority for what was trained."""
        self._take_all_back("rollback")
        steps = event["step"]
        self.epoch, self.steps_committed = event["epoch"], steps
        self.sealed_through = min(self.sealed_through, steps - 1)
        self.versions = {version: min(step, steps) for version, step in self.versions.items()}
        self.counters["rollbacks"] += 1
        for step in sorted(s for s in self.history if s >= steps):
            row = self.history.pop(step)
            self.live_consumed -= row.num_live
            for group_id in row.trained:
                self._undo(group_id, step)
        batches = {int(step): list(group_ids) for step, group_ids in event["batches"].items()}
        for step in sorted(s for s in batches if s < steps):
            self._reconcile(step, batches[step])

    # -- single groups --------------------------------------------------------------------------------------------

    def _reconcile(self, step: int, group_ids: Sequence[str]) -> None:
        """Makes the record of one step say what the checkpoint's manifest says."""
        row = self.history.setdefault(step, StepRow())
        self.live_consumed -= row.num_live
        for group_id in [g for g in row.trained if g not in group_ids]:
            row.num_live -= self._is_live(group_id)
            self._undo(group_id, step)
        for group_id in [g for g in group_ids if g not in row.trained]:
            entry = self.entries.get(group_id)
            if entry is None:  # the log lost it, the weights did not: it must never be trained on again
                entry = Entry(group_id=group_id, source=UNKNOWN_SOURCE, seq=self.next_seq, budget=1)
                self._add(entry, Status.SEALED, "adopted")
            self._use(entry, step)
            was_consumed = row.dropped.pop(group_id, None) is not None
            row.num_live += self._is_live(group_id) and not was_consumed
        row.trained = list(group_ids)
        self.live_consumed += row.num_live

    def _is_live(self, group_id: str) -> bool:
        entry = self.entries.get(group_id)
        return entry is not None and entry.source == LIVE

    def _use(self, entry: Entry, step: int) -> None:
        """Counts one training. A group whose block is gone cannot be used again, whatever its budget."""
        is_held = entry.status in HELD
        self._unlist(entry)
        entry.uses.append(step)
        if entry.source in self.reuse:
            self.reuse[entry.source].sampled += 1
        entry.move((Status.COMMITTED if entry.is_spent else Status.READY) if is_held else Status.SEALED)
        self._list(entry)

    def _undo(self, group_id: str, step: int) -> None:
        """Takes back one training; a group whose block is gone is then lost, and counted."""
        entry = self.entries.get(group_id)
        if entry is None:
            self.counters["lost_behind_seal"] += 1
            return
        is_held = entry.status in HELD
        self._unlist(entry)
        entry.uses.remove(step)
        if entry.source in self.reuse:
            self.reuse[entry.source].sampled -= 1
        if is_held:
            entry.move(Status.READY)
        self._list(entry)
        if entry.status is Status.SEALED and not entry.uses:
            self._evict(entry, "lost_behind_seal")

    def _priority(self, source: str, value: float | None) -> float:
        """The highest one so far stands for an unknown one."""
        top = self.top_priorities.get(source)
        if value is None:
            return 1.0 if top is None else top
        self.top_priorities[source] = value if top is None else max(top, value)
        return value

    def _add(self, entry: Entry, status: Status, counter: str) -> None:
        self.next_seq += 1
        self.counters[counter] += 1
        self.entries[entry.group_id] = entry
        self._change(entry, status)

    def _evict(self, entry: Entry, reason: str) -> None:
        entry.reason = reason
        self._count_drop(entry.source, reason, entry.num_tokens)
        self._change(entry, Status.EVICTED)

    def _change(self, entry: Entry, status: Status) -> None:
        self._unlist(entry)
        entry.move(status)
        self._list(entry)

    def _take_all_back(self, reason: str) -> None:
        """Nobody's lease or ticket counts any more."""
        self._return_lease(reason)
        for ticket_id in list(self.tickets):
            self._return_ticket(ticket_id, reason)

    def _return_ticket(self, ticket_id: str, reason: str) -> None:
        row = self.tickets.pop(ticket_id)
        self.due[row.due] -= 1
        if not self.due[row.due]:
            del self.due[row.due]
        self.ticket_fates[reason] += 1
        self.counters["tickets_returned"] += 1

    def _return_lease(self, reason: str) -> None:
        """The groups of an outstanding lease are READY again, in their old order."""
        if self.lease is None:
            return
        returned, self.lease = self.lease, None
        self.counters[f"leases_returned:{reason}"] += 1
        for group_id in returned.group_ids:
            self._change(self.entries[group_id], Status.READY)

    def _count_drop(self, source: str, reason: str, num_tokens: int) -> None:
        self.drops[f"{source}/{reason}/{length_bucket(num_tokens)}"] += 1

    # -- indexes --------------------------------------------------------------------------------------------------

    def _list(self, entry: Entry) -> None:
        self.statuses[f"{entry.status}/{entry.source}"] += 1
        self._index(entry)
        if entry.status not in HELD and entry.closed_at is None:
            entry.closed_at = self.num_seals
            self.payloads.discard(entry.group_id)

    def _unlist(self, entry: Entry) -> None:
        if entry.status is Status.TICKET:
            return
        self.statuses[f"{entry.status}/{entry.source}"] -= 1
        self.uses_left[entry.source] -= entry.uses_left
        self.held_bytes -= entry.num_bytes if entry.status in HELD else 0
        if entry.status is Status.READY:
            self.queues[entry.source].remove(_candidate(entry))
            if entry.version is not None:
                same_version = self.ready_by_version[entry.source, entry.version]
                same_version.remove(entry.group_id)
                if not same_version:
                    del self.ready_by_version[entry.source, entry.version]

    def _index(self, entry: Entry) -> None:
        self.uses_left[entry.source] += entry.uses_left
        self.held_bytes += entry.num_bytes if entry.status in HELD else 0
        if entry.status in OPEN and entry.source not in self.queues:  # a leased group makes its source known as well
            self.queues[entry.source] = self._make_queue(entry.source)
        if entry.status is not Status.READY:
            return
        queue = self.queues[entry.source]
        queue.add(_candidate(entry))
        if entry.version is not None:
            self.ready_by_version.setdefault((entry.source, entry.version), set()).add(entry.group_id)

    # -- snapshots ------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """The whole state without payloads; `from_json` of another instance restores it."""
        return {
            **{name: getattr(self, name) for name in _SCALARS},
            **{name: _string_keys(getattr(self, name)) for name in _TABLES},
            "reuse": {source: asdict(row) for source, row in self.reuse.items()},
            "tickets": {ticket_id: asdict(row) for ticket_id, row in self.tickets.items()},
            "entries": [{name: getattr(entry, name) for name in _ENTRY} for entry in self.entries.values()],
            "lease": None if self.lease is None else asdict(self.lease),
            "history": {str(step): asdict(row) for step, row in self.history.items()},
        }

    def from_json(self, data: Mapping[str, Any]) -> None:
        """Fills a new instance."""
        for name in _SCALARS:
            setattr(self, name, data.get(name, getattr(self, name)))
        for name in _TABLES:
            table = getattr(self, name)
            number = name in ("versions", "ages")
            table.update({int(k) if number else k: v for k, v in data.get(name, {}).items()})
        self.tickets = {ticket_id: TicketRow(**row) for ticket_id, row in data["tickets"].items()}
        self.reuse = {source: Reuse(**row) for source, row in data.get("reuse", {}).items()}
        self.due.update(row.due for row in self.tickets.values())
        self.lease = None if data["lease"] is None else LeaseRow(**data["lease"])
        self.history = {int(step): StepRow(**row) for step, row in data["history"].items()}
        self.live_consumed = sum(row.num_live for row in self.history.values())
        for row in data["entries"]:
            entry = Entry(**{**row, "status": Status(row["status"]), "uses": list(row["uses"])})
            self.entries[entry.group_id] = entry
            self._index(entry)

    def held(self) -> Iterable[Entry]:
        """Groups whose packed block is still needed."""
        return (entry for entry in self.entries.values() if entry.status in HELD)


_ENTRY = tuple(field.name for field in fields(Entry))
_SCALARS = ("boot", "incarnation", "epoch", "steps_committed", "sealed_through", "num_seals", "next_seq")
_TABLES = ("versions", "counters", "turns", "statuses", "ticket_fates", "drops", "ages", "top_priorities")


def _candidate(entry: Entry) -> Candidate:
    return Candidate(
        entry.group_id, entry.turn, entry.seq, entry.oldest or 0, entry.priority, entry.prompt_id, entry.num_bytes
    )


def _string_keys(table: Mapping[Any, Any]) -> dict[str, Any]:
    """JSON has only string keys; counters that returned to zero say nothing."""
    return {str(key): value for key, value in table.items() if value != 0 or not isinstance(table, Counter)}
