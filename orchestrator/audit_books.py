"""Books of an audit: every ticket, group and step as the replay journal tells them, beside the rules they must keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

HELD = ("ready", "leased", "committed")
"""States in which a group's packed block is still needed."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One violation.

    Attributes:
        rule: ticket, state, batch, age, budget, version, manifest, snapshot, block or journal.
        message: what was found, with its values.
    """

    rule: str
    message: str


@dataclass(slots=True, kw_only=True)
class AuditedGroup:
    """An accepted group as the journal tells it."""

    source: str
    state: str = "ready"
    reason: str = ""
    oldest: int | None = None
    budget: int | None = None
    digest: str = ""
    blob: Sequence[Any] | None = None
    uses: list[int] = field(default_factory=list)


class AuditBooks:
    """Every ticket, group and step of a journal; rules that an event breaks become findings, and it is followed on."""

    def __init__(self, *, is_shard: bool = False) -> None:
        """Args: is_shard: batches of this journal are parts of batches."""
        self._is_shard = is_shard
        self.batch_sizes: dict[int, int] = {}
        """Groups handed out for each committed step of this journal, dropped ones included."""
        self.findings: list[Finding] = []
        self.groups: dict[str, AuditedGroup] = {}
        self.num_in: Counter[tuple[str, str]] = Counter()
        """Accepted groups by source and state."""
        self.tickets: dict[str, str] = {}
        """Fate of every ticket ever issued."""
        self.outstanding: set[str] = set()
        self.refused: Counter[tuple[str, str, str]] = Counter()
        self.history: dict[int, list[str]] = {}
        self.versions: dict[int, int] = {}
        self.ages: Counter[int] = Counter()
        self.lease: Mapping[str, Any] | None = None
        self.lease_ids: set[str] = set()
        self.forgotten: Counter[tuple[str, str, str]] = Counter()
        """Groups that ended before a journal that began anew, and that nobody needs any more."""
        self.earlier_tickets: Counter[str] = Counter()
        """Fates of tickets before such a journal."""
        self.adopted: set[str] = set()
        """Groups known from a manifest alone."""
        self.max_age, self.groups_per_update = 0, 0
        self.steps_committed, self.sealed_through, self.epoch = 0, -1, 0

    def find(self, rule: str, message: str) -> None:
        self.findings.append(Finding(rule, message))

    def count_groups(self) -> Counter[tuple[str, str, str]]:
        return Counter((group.source, group.state, group.reason) for group in self.groups.values())

    def follow(self, event: Mapping[str, Any]) -> None:
        """Raises KeyError or AttributeError for an event that is none of the known kinds or lacks a field."""
        getattr(self, f"_on_{event['kind']}")(event)

    def _on_base(self, event: Mapping[str, Any]) -> None:
        """A journal that began anew: what came before is taken from the cache's own state."""
        state, earlier = event["state"], "before this journal"
        for entry in state["entries"]:
            fields = {name: entry[name] for name in ("source", "oldest", "budget", "digest", "blob")}
            group = AuditedGroup(
                **fields, state=entry["status"], reason=entry["reason"] or "", uses=list(entry["uses"])
            )
            self._add(entry["group_id"], group)
            if group.source == "unknown":
                self.adopted.add(entry["group_id"])
        for key, num in state["statuses"].items():
            status, source = key.split("/")
            self.forgotten[source, status, earlier] = num - self.num_in[source, status]
        self.refused["all", "refused", earlier] = state["counters"].get("refused", 0)
        self.outstanding = set(state["tickets"])
        self.tickets = dict.fromkeys(self.outstanding, "outstanding")
        self.earlier_tickets.update(state["ticket_fates"])
        self.history = {int(step): list(row["trained"]) for step, row in state["history"].items()}
        self.versions = {int(version): step for version, step in state["versions"].items()}
        self.ages.update({int(age): num for age, num in state["ages"].items()})
        row = state["lease"]
        self.lease = None if row is None else {**row, "lease": row["lease_id"], "groups": row["group_ids"]}
        self.lease_ids = set() if row is None else {row["lease_id"]}
        self.steps_committed, self.sealed_through = state["steps_committed"], state["sealed_through"]
        self.epoch, self.max_age = state["epoch"], event["max_age"]
        self.groups_per_update = event["groups_per_update"]

    def _on_rule(self, event: Mapping[str, Any]) -> None:
        """How often collected groups are used is no matter of accounts."""

    def _on_moved(self, event: Mapping[str, Any]) -> None:
        for group_id, blob in event["blobs"].items():
            self._known(group_id, HELD, "moved").blob = blob

    # -- tickets and versions -------------------------------------------------------------------------------------

    def _on_opened(self, event: Mapping[str, Any]) -> None:
        self.max_age, self.groups_per_update, self.epoch = event["max_age"], event["groups_per_update"], event["epoch"]
        if not event.get("in_place"):
            self._void("restart")

    def _on_version(self, event: Mapping[str, Any]) -> None:
        version, step = event["version"], event["step"]
        if version in self.versions:
            self.find("version", f"policy version {version} was announced twice")
        if step > self.steps_committed:
            self.find("version", f"version {version} claims {step} steps, {self.steps_committed} are committed")
        self.versions[version] = step

    def _on_issued(self, event: Mapping[str, Any]) -> None:
        if event["ticket"] in self.tickets:
            self.find("ticket", f"ticket {event['ticket']} was issued twice")
        self.tickets[event["ticket"]] = "outstanding"
        self.outstanding.add(event["ticket"])
        live, running = self.num_in["live", "ready"] + self.num_in["live", "leased"], len(self.outstanding)
        bound = (self.max_age + 1) * self.groups_per_update
        if live + running > bound:
            self.find("ticket", f"ticket {event['ticket']}: {live} live groups + {running} running exceed {bound}")

    def _on_returned(self, event: Mapping[str, Any]) -> None:
        self._close_ticket(event["ticket"], event["reason"])

    def _close_ticket(self, ticket_id: str, fate: str) -> None:
        if (now := self.tickets.get(ticket_id, "never issued")) != "outstanding":
            self.find("ticket", f"ticket {ticket_id} became {fate!r}, but it was {now!r}")
        self.tickets[ticket_id] = fate
        self.outstanding.discard(ticket_id)

    def _void(self, reason: str) -> None:
        self._give_back()
        for ticket_id in list(self.outstanding):
            self._close_ticket(ticket_id, reason)

    # -- groups ---------------------------------------------------------------------------------------------------

    def _on_put(self, event: Mapping[str, Any]) -> None:
        group_id, source = event["group"], event["source"]
        if group_id in self.groups:
            self.find("state", f"group {group_id} was accepted twice")
        if event["ticket"] is not None:
            self._close_ticket(event["ticket"], "stored")
        if source == "live" and (event["ticket"] is None or event["oldest"] not in self.versions):
            self.find("state", f"live group {group_id}: ticket {event['ticket']}, unknown version {event['oldest']}")
        group = AuditedGroup(
            source=source, oldest=event["oldest"], budget=event["budget"], digest=event["digest"], blob=event["blob"]
        )
        self._add(group_id, group)

    def _on_refused(self, event: Mapping[str, Any]) -> None:
        self.refused[event["source"], "refused", event["reason"]] += 1
        if event["ticket"] in self.outstanding:
            self._close_ticket(event["ticket"], f"refused:{event['reason']}")

    def _on_evicted(self, event: Mapping[str, Any]) -> None:
        for group_id in event["groups"]:
            self._evict(group_id, event["reason"], ("ready",))

    def _evict(self, group_id: str, reason: str, expected: Sequence[str]) -> None:
        group = self._known(group_id, expected, f"evicted as {reason!r}")
        self._move(group, "evicted", reason or "without a reason")
        if not reason:
            self.find("state", f"group {group_id} was evicted without a reason")

    def _on_lost(self, event: Mapping[str, Any]) -> None:
        for group_id in event["groups"]:
            group = self._known(group_id, ("ready", "committed"), "lost")
            if group.state == "committed":
                self._move(group, "sealed")
            else:
                self._evict(group_id, "lost", ("ready",))

    def _known(self, group_id: str, expected: Iterable[str], what: str) -> AuditedGroup:
        """The group; a finding when it is not in one of the expected states."""
        if group_id not in self.groups:
            self.find("state", f"group {group_id} was {what}, but it was never accepted")
            return self._add(group_id, AuditedGroup(source="unknown"))
        group = self.groups[group_id]
        if group.state not in expected:
            self.find("state", f"group {group_id} was {what} while {group.state} ({group.reason or 'no reason'})")
        return group

    def _add(self, group_id: str, group: AuditedGroup) -> AuditedGroup:
        if group_id in self.groups:
            self.num_in[self.groups[group_id].source, self.groups[group_id].state] -= 1
        self.groups[group_id] = group
        self.num_in[group.source, group.state] += 1
        return group

    def _move(self, group: AuditedGroup, state: str, reason: str = "") -> None:
        self.num_in[group.source, group.state] -= 1
        self.num_in[group.source, state] += 1
        group.state, group.reason = state, reason

    # -- batches --------------------------------------------------------------------------------------------------

    def _on_leased(self, event: Mapping[str, Any]) -> None:
        name, step, group_ids = event["lease"], event["step"], event["groups"]
        if self.lease is not None or name in self.lease_ids:
            before = self.lease["lease"] if self.lease is not None else "one of this name"
            self.find("batch", f"lease {name} was handed out after {before} and without its return")
        if step != self.steps_committed:
            self.find("batch", f"lease {name} is for step {step}, but {self.steps_committed} steps are committed")
        is_whole = self._is_shard or len(group_ids) == self.groups_per_update
        if not is_whole or len(set(group_ids)) != len(group_ids):
            self.find("batch", f"lease {name} holds {len(group_ids)} groups ({self.groups_per_update} make a batch)")
        for group_id in group_ids:
            group = self._known(group_id, ("ready",), f"leased for step {step}")
            self._move(group, "leased")
            if group.budget is not None and len(group.uses) >= group.budget:
                self.find("budget", f"group {group_id} was leased for step {step} after its uses {group.uses}")
            self._check_age(group_id, group, step, event["ages"].get(group_id))
        self.lease = event
        self.lease_ids.add(name)

    def _check_age(self, group_id: str, group: AuditedGroup, step: int, recorded: int | None) -> None:
        age = None if group.oldest is None else step - self.versions.get(group.oldest, step)
        if age != recorded:
            self.find("age", f"group {group_id} at step {step}: recorded age {recorded}, by its versions {age}")
        if age is not None:
            self.ages[age] += 1
            if age > self.max_age:
                self.find("age", f"group {group_id} was handed out at step {step} with age {age} > {self.max_age}")

    def _on_lease_returned(self, event: Mapping[str, Any]) -> None:
        if self.lease is None:
            self.find("batch", f"a lease was returned ({event['reason']}), but none was outstanding")
        self._give_back()

    def _give_back(self) -> None:
        for group_id in self.lease["groups"] if self.lease is not None else ():
            self._move(self.groups[group_id], "ready")
        self.lease = None

    def _on_committed(self, event: Mapping[str, Any]) -> None:
        if self.lease is None or self.lease["lease"] != event["lease"]:
            self.find("batch", f"commit of lease {event['lease']}, but {self.lease and self.lease['lease']} was out")
            return
        step, group_ids, dropped = self.lease["step"], self.lease["groups"], event["dropped"]
        self.lease = None
        self.steps_committed = step + 1
        self.batch_sizes[step] = len(group_ids)
        self.history[step] = [group_id for group_id in group_ids if group_id not in dropped]
        if strangers := sorted(set(dropped) - set(group_ids)):
            self.find("batch", f"commit of step {step} dropped groups it did not hold: {strangers}")
        for group_id in group_ids:
            if group_id in dropped:
                self._evict(group_id, dropped[group_id], ("leased",))
            else:
                self._use(group_id, step)

    def _on_sealed(self, event: Mapping[str, Any]) -> None:
        if not self.sealed_through < event["step"] < self.steps_committed:
            state = f"{self.steps_committed} committed, sealed through {self.sealed_through}"
            self.find("batch", f"seal of step {event['step']}: {state}")
        self.sealed_through = event["step"]
        for group in self.groups.values():
            if group.state == "committed" and max(group.uses) <= event["step"]:
                self._move(group, "sealed")

    def _on_rolled_back(self, event: Mapping[str, Any]) -> None:
        self._void("rollback")
        steps = event["step"]
        self.steps_committed, self.epoch = steps, event["epoch"]
        self.sealed_through = min(self.sealed_through, steps - 1)
        self.versions = {version: min(step, steps) for version, step in self.versions.items()}
        for step in sorted(s for s in self.history if s >= steps):
            for group_id in self.history.pop(step):
                self._undo(group_id, step)
        manifest = {int(step): list(group_ids) for step, group_ids in event["batches"].items()}
        for step in sorted(s for s in manifest if s < steps):
            before, self.history[step] = self.history.get(step, []), manifest[step]
            for group_id in (g for g in before if g not in manifest[step]):
                self._undo(group_id, step)
            for group_id in (g for g in manifest[step] if g not in before):
                self._use(group_id, step)

    def _use(self, group_id: str, step: int) -> None:
        if group_id not in self.groups:
            self.adopted.add(group_id)
            self._add(group_id, AuditedGroup(source="unknown", state="sealed", budget=1))
        group = self.groups[group_id]
        group.uses.append(step)
        spent = group.budget is not None and len(group.uses) >= group.budget
        self._move(group, ("committed" if spent else "ready") if group.state in HELD else "sealed")

    def _undo(self, group_id: str, step: int) -> None:
        group = self.groups[group_id]
        group.uses.remove(step)
        if group.state in HELD:
            self._move(group, "ready")
        elif group.state == "sealed" and not group.uses:
            self._move(group, "evicted", "lost_behind_seal")

    # -- the whole ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """What must hold at the end of the journal."""
        uses: dict[str, list[int]] = {}
        for step in sorted(self.history):
            for group_id in self.history[step]:
                uses.setdefault(group_id, []).append(step)
        for group_id, group in self.groups.items():
            trained = uses.get(group_id, [])
            if group.budget is not None and len(trained) > group.budget:
                self.find("budget", f"group {group_id} was trained on at steps {trained}, its budget is {group.budget}")
            if group.state in ("committed", "sealed") and not trained:
                self.find("state", f"group {group_id} is {group.state}, but no step of the history trained on it")
        if missing := sorted(set(range(self.steps_committed)) - set(self.history)):
            self.find("batch", f"{self.steps_committed} steps are committed, but the history lacks {missing}")


def merged(parts: Sequence[AuditBooks]) -> AuditBooks:
    """The books of all shards as those of one cache, with what only shows when they are seen together."""
    whole = AuditBooks()
    whole.max_age, whole.groups_per_update = parts[0].max_age, parts[0].groups_per_update
    whole.steps_committed = min(part.steps_committed for part in parts)
    whole.sealed_through = max(part.sealed_through for part in parts)
    for part in parts:
        whole.findings += part.findings
        if twice := sorted(set(whole.groups) & set(part.groups)):
            whole.find("state", f"groups were accepted by two shards: {twice[:10]}")
        whole.groups |= part.groups
        whole.tickets |= part.tickets
        whole.refused.update(part.refused)
        whole.forgotten.update(part.forgotten)
        whole.ages.update(part.ages)
        whole.earlier_tickets.update(part.earlier_tickets)
        for step, group_ids in part.history.items():
            whole.history.setdefault(step, []).extend(group_ids)
    if len({part.steps_committed for part in parts}) > 1:
        steps = [part.steps_committed for part in parts]
        whole.find("batch", f"the shards have committed {steps} steps: a commit was cut short and not repeated")
    for step in set.intersection(*(set(part.batch_sizes) for part in parts)):
        size = sum(part.batch_sizes[step] for part in parts)
        if size != whole.groups_per_update:
            whole.find("batch", f"step {step} took {size} groups from the shards, not {whole.groups_per_update}")
    return whole
