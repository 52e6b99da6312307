"""TaskFeed: which task next, who works on it, and what came of it."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actors.ledger import LedgerRow, PromptLedger
from actors.ports import LeasedTask, Outcome
from actors.replay.log import Journal, read_journal, read_json, write_json
from rewards.task import Task
from rewards.trajectory import PolicyVersion

LEASE_TIMEOUT_S = 600.0
"""A task whose outcome is not known by then is leased again."""

MAX_LAPSED = 4096
"""Lapsed leases whose outcome is still counted should it come; of more, the oldest are forgotten."""

Order = Callable[[PromptLedger, int], Sequence[int]]
"""Ledger and 0-based epoch to the positions of the tasks this epoch goes through, in order."""


def uniform_order(tasks: Sequence[Task], seed: int) -> Order:
    """Every task once per epoch, in a permutation of seed and epoch; prompts the ledger calls retired are left out."""

    def order(ledger: PromptLedger, epoch: int) -> list[int]:
        permutation = np.random.default_rng([seed, epoch]).permutation(len(tasks)).tolist()
        return [position for position in permutation if not ledger.row(tasks[position].task_id).retired]

    return order


@dataclass(slots=True)
class _Lease:
    """One hand-out of the item `index`, which is the task at `position`.

    Attributes:
        lapsed: it ran out or its worker was released; an outcome that comes nevertheless is counted.
        fulfilled: another lease of the same item has finished, so this one need not be repeated.
    """

    index: int
    position: int
    prompt_id: str
    attempt: int
    worker_id: str
    lapsed: bool = False
    fulfilled: bool = False


class FeedState:
    """Where the stream stands. Changes only by `apply(event)`, so a log of events rebuilds it; knows no task or clock.

    An item is a place in the stream (`index`). It is waiting, leased, or finished; a lapsed lease puts it back among
    the waiting ones, which come before anything new, oldest first.
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
            self.cursor += 1
        self.leases[event["lease"]] = _Lease(index, position, event["prompt"], attempt, event["worker"])
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
        self.ledger.count(_outcome_from(event))
        self.counters["finished"] += 1
        self.counters["finished_late"] += lease.lapsed

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
            "waiting": [[index, *item] for index, item in self.waiting.items()],
            "ledger": self.ledger.to_json(),
            "counters": dict(self.counters),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FeedState:
        state = cls()
        for name in _SCALARS:
            setattr(state, name, data[name])
        state.order = list(data["order"])
        state.leases = {lease_id: _Lease(**lease) for lease_id, lease in data["leases"].items()}
        state.waiting = {index: (position, attempt) for index, position, attempt in data["waiting"]}
        state.ledger = PromptLedger.from_json(data["ledger"])
        state.counters = Counter(data["counters"])
        return state


_SCALARS = ("boot", "tasks_digest", "num_tasks", "epoch", "cursor", "next_index", "next_lease")


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


class TaskFeed:
    """Leases tasks in a deterministic stream and keeps the prompt ledger. Knows nothing of Ray.

    Consumes tasks and outcomes; produces leased tasks; waits for nothing.

    The stream is one order of tasks per epoch, and `LeasedTask.index` its position, whoever asks and whenever. Each
    change is logged before it is answered, so a feed built over the same folder goes on where the last one stopped:
    what was leased is still leased, and an outcome that was counted is not counted again.

    Args:
        log_dir: folder of this feed alone; an existing one is continued.
        order: decides each epoch's order when it begins; `uniform_order` by default.
        clock: seconds that never go back.

    Raises:
        ValueError: no tasks, or the folder continues a stream over other tasks.
        CorruptLogError: the folder's history is damaged.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        seed: int,
        log_dir: Path,
        order: Order | None = None,
        lease_timeout_s: float = LEASE_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not tasks:
            raise ValueError("a TaskFeed needs at least one task, got none: check tasks.source and tasks.num_train")
        self._tasks, self._order = tuple(tasks), order or uniform_order(tasks, seed)
        self._timeout_s, self._clock = lease_timeout_s, clock
        self._num_repeated = 0
        log_dir.mkdir(parents=True, exist_ok=True)
        self._log_dir = log_dir
        self._state = restore_state(log_dir)
        self._journal = Journal(log_dir / "journal.jsonl")
        self._open()
        now = self._clock()
        self._granted_at = dict.fromkeys(self._state.active(), now)
        """Seconds by active lease, oldest first. After a restart every worker gets its whole time again."""

    async def lease_task(self, worker_id: str) -> LeasedTask:
        """The oldest task that has to be repeated, else the next of the stream; never waits.

        Raises:
            ValueError: the order of a new epoch names no task, or one that does not exist.
            OSError: it could not be logged; nothing was leased.
        """
        self._lapse_overdue()
        state = self._state
        if state.waiting:
            index = min(state.waiting)
            position, attempt = state.waiting[index]
        else:
            if state.cursor == len(state.order):
                self._begin_epoch()
            index, position, attempt = state.next_index, state.order[state.cursor], 0
        task, lease_id = self._tasks[position], f"{state.boot}.{state.next_lease}"
        row = state.ledger.row(task.task_id)
        self._record(
            kind="leased",
            lease=lease_id,
            index=index,
            position=position,
            prompt=task.task_id,
            attempt=attempt,
            worker=worker_id,
        )
        self._granted_at[lease_id] = self._clock()
        return LeasedTask(lease_id=lease_id, task=task, attempt=attempt, index=index, row=row)

    async def finish_task(self, outcome: Outcome) -> None:
        """Counts what became of a lease; repeating it is a no-op. Late is not too late: an answered attempt is one.

        Raises:
            ValueError: the lease was never handed out, or was for another prompt.
            OSError: it could not be logged; nothing was counted.
        """
        lease = self._state.leases.get(outcome.lease_id)
        if lease is None:
            if not self._state.was_issued(outcome.lease_id):
                raise ValueError(f"outcome of lease {outcome.lease_id!r}, which this feed never handed out")
            self._num_repeated += 1
            return
        if lease.prompt_id != outcome.prompt_id:
            raise ValueError(
                f"outcome of lease {outcome.lease_id} is about prompt {outcome.prompt_id!r}, but the lease was for "
                f"{lease.prompt_id!r}: counting it would falsify both rows"
            )
        self._record(
            kind="finished",
            lease=outcome.lease_id,
            group=outcome.group_id,
            prompt=outcome.prompt_id,
            scored=outcome.num_scored,
            correct=outcome.num_correct,
            mean=outcome.mean_score,
            version=outcome.version,
            fate=outcome.fate,
        )
        self._granted_at.pop(outcome.lease_id, None)

    async def release_worker(self, worker_id: str) -> None:
        """Whoever had this name is gone: its tasks are handed out again at once."""
        held = [lease_id for lease_id, lease in self._state.active().items() if lease.worker_id == worker_id]
        self._lapse(held, "released")

    async def snapshot(self) -> str:
        """Makes everything up to now durable and shortens the way back; returns the file."""
        path = self._log_dir / "snapshot.json"
        self._journal.sync()
        write_json(path, {"position": self._journal.end, "state": self._state.to_json()})
        return str(path)

    async def ledger(self) -> list[LedgerRow]:
        """Rows of all prompts tried so far."""
        return self._state.ledger.rows()

    async def stats(self) -> dict[str, float]:
        """Where the stream stands, tasks by state, leases and outcomes since the run began (repeated ones: since this
        feed was built), prompts tried and solved at least once."""
        state = self._state
        values = {
            "epoch": state.epoch,
            "stream_position": state.next_index,
            "tasks_leased": len(state.active()),
            "tasks_waiting": len(state.waiting),
            "leases": state.counters["leased"],
            "leases_lapsed": state.counters["lapsed"],
            "outcomes": state.counters["finished"],
            "outcomes_late": state.counters["finished_late"],
            "outcomes_repeated": self._num_repeated,
            "prompts_tried": state.ledger.num_tried,
            "prompts_solved": state.ledger.num_solved,
        }
        return {name: float(value) for name, value in values.items()}

    def close(self) -> None:
        """Closes the log; the feed must not be used any more."""
        self._journal.close()

    # -- changes ----------------------------------------------------------------------------------------------------

    def _record(self, *, durable: bool = False, **event: Any) -> None:
        """Logged first: what could not be logged did not happen."""
        self._journal.append(event, durable=durable)
        self._state.apply(event)

    def _open(self) -> None:
        """A new incarnation, so that its leases cannot be taken for those of the last one."""
        ids = "\n".join(task.task_id for task in self._tasks)
        digest = hashlib.blake2b(ids.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        state = self._state
        if state.boot >= 0 and (state.num_tasks, state.tasks_digest) != (len(self._tasks), digest):
            self._journal.close()
            raise ValueError(
                f"{self._log_dir} continues a stream over {state.num_tasks} tasks (digest {state.tasks_digest}), but "
                f"these are {len(self._tasks)} (digest {digest}), so its positions would name other tasks. Resume with "
                "the tasks the run began with, or start a new run."
            )
        self._record(kind="opened", boot=state.boot + 1, digest=digest, tasks=len(self._tasks), durable=True)

    def _begin_epoch(self) -> None:
        epoch = self._state.epoch + 1
        order = [int(position) for position in self._order(self._state.ledger, epoch)]
        strangers = [position for position in order if not 0 <= position < len(self._tasks)]
        if not order or strangers:
            names = f"tasks {strangers[:3]}" if strangers else "no task"
            raise ValueError(
                f"the order of epoch {epoch} names {names}, but there are {len(self._tasks)} tasks (0 to "
                f"{len(self._tasks) - 1}): nothing could be sampled. Change the order or bring retired prompts back."
            )
        self._record(kind="epoch", epoch=epoch, order=order)

    def _lapse_overdue(self) -> None:
        now, overdue = self._clock(), []
        for lease_id, granted_at in self._granted_at.items():
            if now - granted_at < self._timeout_s:
                break
            overdue.append(lease_id)
        self._lapse(overdue, "overdue")

    def _lapse(self, lease_ids: Sequence[str], reason: str) -> None:
        if lease_ids:
            self._record(kind="lapsed", leases=list(lease_ids), reason=reason)
        for lease_id in lease_ids:
            del self._granted_at[lease_id]


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
    )
