"""FeedState: where the stream of tasks stands, rebuilt from a log of events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actors.ledger import LedgerRow, PromptLedger
from actors.ports import Outcome
from actors.replay.log import read_journal, read_json
from rewards.trajectory import PolicyVersion

MAX_LAPSED = 4096
"""Lapsed leases whose outcome is still counted should it come; of more, the oldest are forgotten."""

MAX_FORKS = 64
"""Forked tasks that wait to be leased; of more, the oldest are forgotten, because the policy has moved on."""

DONORS_PER_PROMPT = 8
"""Answers each table keeps of one prompt, the newest ones."""


@dataclass(slots=True)
class _Lease:
    """One hand-out of the item `index`, which is the task at `position`.

    Attributes:
        key: of the request it answers.
        lapsed: it ran out or its worker was released; an outcome that comes nevertheless is counted.
        fulfilled: another lease of the same item has finished, so this one need not be repeated.
    """

    index: int
    position: int
    prompt_id: str
    attempt: int
    worker_id: str
    key: str = ""
    lapsed: bool = False
    fulfilled: bool = False


class FeedState:
    """Where the stream stands. Changes only by `apply(event)`, so a log of events rebuilds it; knows no task or clock.

    An item is a place in the stream (`index`). It is waiting, leased, or finished; a lapsed lease puts it back among
    the waiting ones, which come before anything new, oldest first. Forked tasks come next, the newest first; their
    positions are negative.
    """

    def __init__(self) -> None:
        self.boot = -1
        self.tasks_digest = ""
        self.num_tasks = 0
        self.epoch = -1
        self.order: list[int] = []
        self.cursor = 0
        self.next_index = 0
        self.next_lease = 0
        self.leases: dict[str, _Lease] = {}
        """Handed out and without an outcome, in the order of hand-out."""
        self.waiting: dict[int, tuple[int, int]] = {}
        """Items to hand out again: index to position and next attempt."""
        self.forks: dict[int, dict[str, Any]] = {}
        """Forked tasks in JSON types that are not finished, by number."""
        self.pending_forks: list[int] = []
        """Those nobody has leased yet, the newest last."""
        self.next_fork = 0
        self.donors: dict[str, dict[str, list[list[Any]]]] = {}
        """By prompt and table, the newest last: digest of the tokens, and where the packed answer lies."""
        self.ledger = PromptLedger()
        self.counters: Counter[str] = Counter()

    def apply(self, event: Mapping[str, Any]) -> None:
        getattr(self, f"_on_{event['kind']}")(event)

    def _on_opened(self, event: Mapping[str, Any]) -> None:
        self.boot, self.tasks_digest, self.num_tasks = event["boot"], event["digest"], event["tasks"]

    def _on_epoch(self, event: Mapping[str, Any]) -> None:
        self.epoch, self.order, self.cursor = event["epoch"], list(event["order"]), 0

    def _on_leased(self, event: Mapping[str, Any]) -> None:
        index, position, attempt = event["index"], event["position"], event["attempt"]
        if self.waiting.pop(index, None) is None:
            self.next_index += 1
            if position >= 0:
                self.cursor += 1
            else:
                self.pending_forks.remove(fork_number(position))
        lease = _Lease(index, position, event["prompt"], attempt, event["worker"], event.get("key", ""))
        self.leases[event["lease"]] = lease
        self.next_lease += 1
        self.counters["leased"] += 1

    def _on_lapsed(self, event: Mapping[str, Any]) -> None:
        for lease_id in event["leases"]:
            lease = self.leases[lease_id]
            lease.lapsed = True
            if not lease.fulfilled:
                self.waiting[lease.index] = (lease.position, lease.attempt + 1)
            self.counters["lapsed"] += 1
        lapsed = [lease_id for lease_id, lease in self.leases.items() if lease.lapsed]
        for lease_id in lapsed[: max(0, len(lapsed) - MAX_LAPSED)]:
            del self.leases[lease_id]

    def _on_finished(self, event: Mapping[str, Any]) -> None:
        lease = self.leases.pop(event["lease"])
        self.waiting.pop(lease.index, None)
        for other in self.leases.values():
            if other.index == lease.index:
                other.fulfilled = True
        if lease.position >= 0:
            self.ledger.count(_outcome_from(event))
        else:
            self.forks.pop(fork_number(lease.position), None)
        self.counters["finished"] += 1
        self.counters["finished_late"] += lease.lapsed
        for task in event.get("forks", ()):
            self._add_fork(task)
        for table, answers in event.get("stashed", {}).items():
            self._add_donors(event["prompt"], table, answers)

    def _add_fork(self, task: dict[str, Any]) -> None:
        number, self.next_fork = self.next_fork, self.next_fork + 1
        self.forks[number] = {**task, "task_id": f"{task['task_id']}~{number}"}
        self.pending_forks.append(number)
        self.counters["forks"] += 1
        if len(self.pending_forks) > MAX_FORKS:
            del self.forks[self.pending_forks.pop(0)]
            self.counters["forks_forgotten"] += 1

    def _add_donors(self, prompt_id: str, table: str, answers: list[list[Any]]) -> None:
        """An answer that is there already becomes the newest; beyond the capacity the oldest go."""
        kept = self.donors.setdefault(prompt_id, {}).get(table, [])
        new = {digest for digest, _ in answers}
        kept = [row for row in kept if row[0] not in new] + [list(row) for row in answers]
        self.donors[prompt_id][table] = kept[-DONORS_PER_PROMPT:]
        self.counters["stashed"] += len(answers)

    def active(self) -> dict[str, _Lease]:
        """Leases somebody is expected to be working on."""
        return {lease_id: lease for lease_id, lease in self.leases.items() if not lease.lapsed}

    def was_issued(self, lease_id: str) -> bool:
        """Leases of an earlier incarnation may have been handed out just before their record was lost."""
        boot, _, number = lease_id.partition(".")
        if not (boot.isdigit() and number.isdigit()):
            return False
        return int(boot) < self.boot or (int(boot) == self.boot and int(number) < self.next_lease)

    def to_json(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in _SCALARS},
            "order": self.order,
            "leases": {lease_id: asdict(lease) for lease_id, lease in self.leases.items()},
            "forks": [[number, task] for number, task in self.forks.items()],
            "pending_forks": self.pending_forks,
            "donors": self.donors,
            "waiting": [[index, *item] for index, item in self.waiting.items()],
            "ledger": self.ledger.to_json(),
            "counters": dict(self.counters),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FeedState:
        state = cls()
        for name in _SCALARS:
            setattr(state, name, data.get(name, 0))
        state.order = list(data["order"])
        state.leases = {lease_id: _Lease(**lease) for lease_id, lease in data["leases"].items()}
        state.waiting = {index: (position, attempt) for index, position, attempt in data["waiting"]}
        state.forks = dict(data.get("forks", ()))
        state.pending_forks = list(data.get("pending_forks", ()))
        state.donors = {prompt: dict(tables) for prompt, tables in data.get("donors", {}).items()}
        state.ledger = PromptLedger.from_json(data["ledger"])
        state.counters = Counter(data["counters"])
        return state


_SCALARS = ("boot", "tasks_digest", "num_tasks", "epoch", "cursor", "next_index", "next_lease", "next_fork")


def restore_state(log_dir: Path) -> FeedState:
    """What a feed's folder remembers: its newest intact snapshot and the events after it. Only reads.

    Raises:
        CorruptLogError: the journal is damaged in the middle.
    """
    journal, snapshot = log_dir / "journal.jsonl", read_json(log_dir / "snapshot.json")
    size = journal.stat().st_size if journal.exists() else 0
    if snapshot is None or snapshot["position"] > size:
        state, start = FeedState(), 0
    else:
        state, start = FeedState.from_json(snapshot["state"]), snapshot["position"]
    for event, _ in read_journal(journal, start):
        state.apply(event)
    return state


def read_ledger(log_dir: Path) -> list[LedgerRow]:
    """The prompt ledger of a run that may be going on, from its files; for people."""
    return restore_state(log_dir).ledger.rows()


def fork_number(position: int) -> int:
    """Forked tasks have the positions -1, -2, ..."""
    return -1 - position


def _outcome_from(event: Mapping[str, Any]) -> Outcome:
    version = event["version"]
    return Outcome(
        lease_id=event["lease"],
        group_id=event["group"],
        prompt_id=event["prompt"],
        num_scored=event["scored"],
        num_correct=event["correct"],
        mean_score=event["mean"],
        version=None if version is None else PolicyVersion(version),
        fate=event["fate"],
        helped_scored=event.get("helped_scored", 0),
        helped_correct=event.get("helped_correct", 0),
        is_retired=event.get("retired", False),
        stage_change=event.get("stage_change", 0),
    )
