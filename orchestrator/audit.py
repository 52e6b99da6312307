"""Exactly-once accounting of a run, derived from the replay journal and the newest checkpoint's batch manifest.

Follows the journal with books of its own, so that a fault of the replay cache's state shows as a difference.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.replay.log import BlockStore, CorruptLogError, read_journal, read_json
from actors.run_checkpoint import RestorePoint, newest_restore_point
from learner.checkpoint import CorruptCheckpointError
from orchestrator.run_files import RunFiles
from rewards.codec import payload_digest

MAX_LINES = 50
"""Violations printed for the terminal; the report holds all of them."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What the books say about one run.

    Attributes:
        findings: violations; empty when every group and ticket is accounted for.
        groups: number of groups by (source, state, reason); refused ones stand beside the accepted.
        tickets: number of tickets by fate; `outstanding` ones are still held.
        ages: live groups by age in committed steps at hand-out.
        max_age: the bound in force last.
        steps_committed: steps of the surviving history.
        checkpoint_step: steps the newest intact checkpoint contains; None without one.
    """

    run_dir: Path
    findings: tuple[Finding, ...]
    groups: Mapping[tuple[str, str, str], int]
    tickets: Mapping[str, int]
    ages: Mapping[int, int]
    max_age: int
    steps_committed: int
    checkpoint_step: int | None

    @property
    def ok(self) -> bool:
        return not self.findings

    def lines(self) -> list[str]:
        """The report for a terminal."""
        fates = ", ".join(f"{num} {fate}" for fate, num in sorted(self.tickets.items()))
        saved = "no checkpoint" if self.checkpoint_step is None else f"checkpoint after {self.checkpoint_step}"
        handed_out = f"{sum(self.ages.values())} live groups handed out"
        rows = [(source, state, reason, str(num)) for (source, state, reason), num in sorted(self.groups.items())]
        return [
            f"audit of {self.run_dir}",
            f"steps    {self.steps_committed} committed, {saved}",
            f"tickets  {sum(self.tickets.values())} issued{': ' + fates if fates else ''}",
            f"ages     {handed_out}, oldest {max(self.ages, default=0)}, bound {self.max_age}",
            *_table(("source", "state", "reason", "groups"), rows),
            *self._verdict(),
        ]

    def _verdict(self) -> list[str]:
        if self.ok:
            return ["ok       every ticket and group is accounted for, none trained on beyond its budget"]
        shown = [f"  {finding.rule}: {finding.message}" for finding in self.findings[:MAX_LINES]]
        rest = len(self.findings) - len(shown)
        return [f"FAILED   {len(self.findings)} violations", *shown, *([f"  and {rest} more"] if rest else [])]


def audit_run(run_dir: Path) -> AuditReport:
    """Checks the books of a run; best of one that is not running, or the newest events are not in yet.

    Raises:
        FileNotFoundError: the folder holds no replay journal.
    """
    files = RunFiles(run_dir)
    folder = files.state / "replay"
    if not (folder / "journal.jsonl").exists():
        raise FileNotFoundError(f"{folder} holds no replay journal, so there is nothing to audit: is {run_dir} a run?")
    books = _Books()
    _follow(books, folder)
    books.close()
    _check_blocks(books, folder)
    restore = _restore_point(books, files)
    return AuditReport(
        run_dir=run_dir,
        findings=tuple(books.findings),
        groups=books.count_groups() + books.refused,
        tickets=Counter(books.tickets.values()),
        ages=books.ages,
        max_age=books.max_age,
        steps_committed=books.steps_committed,
        checkpoint_step=None if restore is None else restore.step,
    )


@dataclass(slots=True, kw_only=True)
class _Group:
    """An accepted group as the journal tells it."""

    source: str
    state: str = "ready"
    reason: str = ""
    oldest: int | None = None
    budget: int | None = None
    digest: str = ""
    blob: Sequence[Any] | None = None
    uses: list[int] = field(default_factory=list)


class _Books:
    """Every ticket, group and step of a journal; rules that an event breaks become findings, and it is followed on."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.groups: dict[str, _Group] = {}
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
        group = _Group(
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

    def _known(self, group_id: str, expected: Iterable[str], what: str) -> _Group:
        """The group; a finding when it is not in one of the expected states."""
        if group_id not in self.groups:
            self.find("state", f"group {group_id} was {what}, but it was never accepted")
            return self._add(group_id, _Group(source="unknown"))
        group = self.groups[group_id]
        if group.state not in expected:
            self.find("state", f"group {group_id} was {what} while {group.state} ({group.reason or 'no reason'})")
        return group

    def _add(self, group_id: str, group: _Group) -> _Group:
        if group_id in self.groups:
            self.num_in[self.groups[group_id].source, self.groups[group_id].state] -= 1
        self.groups[group_id] = group
        self.num_in[group.source, group.state] += 1
        return group

    def _move(self, group: _Group, state: str, reason: str = "") -> None:
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
        if len(group_ids) != self.groups_per_update or len(set(group_ids)) != len(group_ids):
            self.find("batch", f"lease {name} holds {len(group_ids)} groups ({self.groups_per_update} make a batch)")
        for group_id in group_ids:
            group = self._known(group_id, ("ready",), f"leased for step {step}")
            self._move(group, "leased")
            if group.budget is not None and len(group.uses) >= group.budget:
                self.find("budget", f"group {group_id} was leased for step {step} after its uses {group.uses}")
            self._check_age(group_id, group, step, event["ages"].get(group_id))
        self.lease = event
        self.lease_ids.add(name)

    def _check_age(self, group_id: str, group: _Group, step: int, recorded: int | None) -> None:
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
            self._add(group_id, _Group(source="unknown", state="sealed", budget=1))
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


def _follow(books: _Books, folder: Path) -> None:
    """Goes through the journal, and compares the snapshot where it was taken."""
    snapshot = read_json(folder / "snapshot.json")
    awaited = None if snapshot is None else snapshot["position"]
    try:
        for number, (event, position) in enumerate(read_journal(folder / "journal.jsonl"), start=1):
            try:
                books.follow(event)
            except (KeyError, AttributeError, TypeError, ValueError) as error:
                books.find("journal", f"event {number} cannot be followed ({error!r}): {json.dumps(event)[:200]}")
            if snapshot is not None and position == awaited:
                _check_snapshot(books, snapshot["state"])
                awaited = None
    except CorruptLogError as error:
        books.find("journal", str(error))
    if awaited is not None:
        books.find("snapshot", f"taken at byte {awaited}, where no event of the journal ends")


def _check_snapshot(books: _Books, state: Mapping[str, Any]) -> None:
    """The replay cache's own state, against the books at the same moment."""
    entries = {entry["group_id"]: entry for entry in state["entries"]}
    lease = None if state["lease"] is None else state["lease"]["lease_id"]
    pairs = {
        "steps committed": (state["steps_committed"], books.steps_committed),
        "sealed through": (state["sealed_through"], books.sealed_through),
        "epoch": (state["epoch"], books.epoch),
        "lease": (lease, books.lease and books.lease["lease"]),
        "outstanding tickets": (sorted(state["tickets"]), sorted(books.outstanding)),
        "issued tickets": (state["counters"].get("tickets_issued", 0), len(books.tickets)),
        "accepted groups": (state["counters"].get("accepted", 0), len(books.groups) - len(books.adopted)),
        "refused groups": (state["counters"].get("refused", 0), sum(books.refused.values())),
        "history": ({int(s): row["trained"] for s, row in state["history"].items()}, books.history),
        "versions": ({int(v): step for v, step in state["versions"].items()}, books.versions),
    }
    for what, (ours, expected) in pairs.items():
        if ours != expected:
            books.find("snapshot", f"{what}: the cache has {_short(ours)}, the journal gives {_short(expected)}")
    for group_id, group in books.groups.items():
        entry = entries.pop(group_id, None)
        if entry is None and group.state in HELD:
            books.find("snapshot", f"group {group_id} is {group.state}, but the cache has forgotten it")
        if entry is not None and (entry["status"], entry["uses"]) != (group.state, group.uses):
            seen = f"{entry['status']} {entry['uses']}"
            books.find(
                "snapshot", f"group {group_id}: the cache has {seen}, the journal gives {group.state} {group.uses}"
            )
    if entries:
        books.find("snapshot", f"the cache has groups the journal never accepted: {_short(sorted(entries))}")


def _check_blocks(books: _Books, folder: Path) -> None:
    """Groups that may still be trained on must be readable, or a restart would lose them."""
    if not (folder / "blocks").is_dir():
        return
    blocks = BlockStore(folder / "blocks")
    for group_id, group in books.groups.items():
        if group.state in HELD:
            data = blocks.read(group.blob) if group.blob is not None else None
            if data is None or payload_digest(data) != group.digest:
                books.find("block", f"the packed block of {group.state} group {group_id} is missing or damaged")


def _restore_point(books: _Books, files: RunFiles) -> RestorePoint | None:
    """The newest intact checkpoint, after its manifest was compared with the journal."""
    try:
        restore = newest_restore_point(files.checkpoints)
    except CorruptCheckpointError as error:
        books.find("manifest", str(error))
        return None
    covered = 0 if restore is None else restore.step
    if books.sealed_through >= covered:
        books.find("manifest", f"steps through {books.sealed_through} are sealed, but {covered} are in a checkpoint")
    if covered > books.steps_committed:
        books.find("manifest", f"the checkpoint contains {covered} steps, the journal {books.steps_committed}")
    batches = {} if restore is None else restore.batches
    for step in range(min(covered, books.steps_committed)):
        manifest, journal = batches.get(step), books.history.get(step, [])
        if manifest is None or sorted(manifest) != sorted(journal):
            found = f"the manifest has {_short(manifest)}, the journal {_short(journal)}"
            books.find("manifest", f"step {step} trained on different groups: {found}")
    return restore


def _short(value: Any, limit: int = 160) -> str:
    text = str(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return ["  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)]
