"""Exactly-once accounting of a run, derived from the replay journal and the newest checkpoint's batch manifest.

Follows the journal with books of its own, so that a fault of the replay cache's state shows as a difference.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.replay.log import BlockStore, CorruptLogError, read_journal, read_json
from actors.run_checkpoint import RestorePoint, newest_restore_point
from learner.checkpoint import CorruptCheckpointError
from orchestrator.audit_books import HELD, AuditBooks, Finding, merged
from orchestrator.run_files import RunFiles
from rewards.codec import payload_digest

MAX_LINES = 50
"""Violations printed for the terminal; the report holds all of them."""


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
    shards = sorted(folder.glob("shard-*"))
    folders = shards or [folder]
    if not all((each / "journal.jsonl").exists() for each in folders):
        raise FileNotFoundError(f"{folder} holds no replay journal, so there is nothing to audit: is {run_dir} a run?")
    parts = [_books_of(each, is_shard=bool(shards)) for each in folders]
    books = parts[0] if len(parts) == 1 else merged(parts)
    restore = _restore_point(books, files)
    return AuditReport(
        run_dir=run_dir,
        findings=tuple(books.findings),
        groups=books.count_groups() + books.refused + books.forgotten,
        tickets=Counter(books.tickets.values()) + books.earlier_tickets,
        ages=books.ages,
        max_age=books.max_age,
        steps_committed=books.steps_committed,
        checkpoint_step=None if restore is None else restore.step,
    )


def _books_of(folder: Path, *, is_shard: bool) -> AuditBooks:
    books = AuditBooks(is_shard=is_shard)
    _follow(books, folder)
    books.close()
    _check_blocks(books, folder)
    return books


def _follow(books: AuditBooks, folder: Path) -> None:
    """Goes through the journal, and compares the snapshot where it was taken."""
    snapshot = read_json(folder / "snapshot.json")
    generation, awaited = 0, None if snapshot is None else snapshot["position"]
    try:
        for number, (event, position) in enumerate(read_journal(folder / "journal.jsonl"), start=1):
            generation = event.get("generation", generation)
            if snapshot is not None and snapshot.get("generation", 0) != generation:
                awaited = None  # of the journal before this one: a crash came before the next snapshot
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


def _check_snapshot(books: AuditBooks, state: Mapping[str, Any]) -> None:
    """The replay cache's own state, against the books at the same moment."""
    entries = {entry["group_id"]: entry for entry in state["entries"]}
    lease = None if state["lease"] is None else state["lease"]["lease_id"]
    pairs = {
        "steps committed": (state["steps_committed"], books.steps_committed),
        "sealed through": (state["sealed_through"], books.sealed_through),
        "epoch": (state["epoch"], books.epoch),
        "lease": (lease, books.lease and books.lease["lease"]),
        "outstanding tickets": (sorted(state["tickets"]), sorted(books.outstanding)),
        "issued tickets": (
            state["counters"].get("tickets_issued", 0),
            len(books.tickets) + sum(books.earlier_tickets.values()),
        ),
        "accepted groups": (
            state["counters"].get("accepted", 0) + state["counters"].get("adopted", 0),
            len(books.groups) + sum(books.forgotten.values()),
        ),
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


def _check_blocks(books: AuditBooks, folder: Path) -> None:
    """Groups that may still be trained on must be readable, or a restart would lose them."""
    if not (folder / "blocks").is_dir():
        return
    blocks = BlockStore(folder / "blocks")
    for group_id, group in books.groups.items():
        if group.state in HELD:
            data = blocks.read(group.blob) if group.blob is not None else None
            if data is None or payload_digest(data) != group.digest:
                books.find("block", f"the packed block of {group.state} group {group_id} is missing or damaged")


def _restore_point(books: AuditBooks, files: RunFiles) -> RestorePoint | None:
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
