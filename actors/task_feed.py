"""TaskFeed: which task next, who works on it, and what came of it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from actors.contexts.policy import GuidancePolicy
from actors.feed_state import fork_number, restore_state
from actors.ledger import LedgerRow, PromptLedger
from actors.ports import DONORS_OF, LeasedTask, Outcome
from actors.replay.log import BlockStore, Journal, write_json
from actors.samplers.config import StageRule
from rewards.codec import decode_group, encode_group
from rewards.task import Task
from rewards.trajectory import Context, Group, Source, Trajectory
from rewards.wire import task_from_json, task_to_json

LEASE_TIMEOUT_S = 600.0
"""A task whose outcome is not known by then is leased again."""

Order = Callable[[PromptLedger, int], Sequence[int]]
"""Ledger and 0-based epoch to the positions of the tasks this epoch goes through, in order."""


def uniform_order(tasks: Sequence[Task], seed: int) -> Order:
    """Every task once per epoch, in a permutation of seed and epoch; prompts the ledger calls retired are left out."""

    def order(ledger: PromptLedger, epoch: int) -> list[int]:
        permutation = np.random.default_rng([seed, epoch]).permutation(len(tasks)).tolist()
        return [position for position in permutation if not ledger.row(tasks[position].task_id).retired]

    return order


class TaskFeed:
    """Leases tasks in a deterministic stream and keeps the prompt ledger. Knows nothing of Ray.

    Consumes tasks and outcomes; produces leased tasks; waits for nothing.

    The stream is one order of tasks per epoch, and `LeasedTask.index` its position, whoever asks and whenever. Each
    change is logged before it is answered, so a feed built over the same folder goes on where the last one stopped:
    what was leased is still leased, and an outcome that was counted is not counted again.

    Args:
        log_dir: folder of this feed alone; an existing one is continued.
        order: decides each epoch's order when it begins; `uniform_order` by default.
        guidance: decides each item's context; None asks plainly.
        stages: how the stage of a prompt follows its groups; None leaves it at 0.
        tables: tables of donors that go out with their prompt.
        donors_from: mean of the prompts' last rates from which they do.
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
        guidance: GuidancePolicy | None = None,
        stages: StageRule | None = None,
        tables: Collection[str] = (),
        donors_from: float = 0.0,
        lease_timeout_s: float = LEASE_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not tasks:
            raise ValueError("a TaskFeed needs at least one task, got none: check tasks.source and tasks.num_train")
        self._tasks, self._order = tuple(tasks), order or uniform_order(tasks, seed)
        self._timeout_s, self._clock = lease_timeout_s, clock
        self._guidance, self._stages, self._tables = guidance, stages, sorted(tables)
        self._donors_from = donors_from
        self._num_repeated = 0
        log_dir.mkdir(parents=True, exist_ok=True)
        self._log_dir = log_dir
        self._state = restore_state(log_dir)
        self._journal = Journal(log_dir / "journal.jsonl")
        self._blocks = BlockStore(log_dir / "donors")
        self._open()
        now = self._clock()
        self._granted_at = dict.fromkeys(self._state.active(), now)
        """Seconds by active lease, oldest first. After a restart every worker gets its whole time again."""

    async def lease_task(self, worker_id: str, key: str = "") -> LeasedTask:
        """The oldest task that has to be repeated, else the newest fork, else the next of the stream; never waits.

        Args:
            key: of the request; repeating it gives the same lease while that is active. Empty: none.

        Raises:
            ValueError: the order of a new epoch names no task, or one that does not exist.
            OSError: it could not be logged; nothing was leased.
        """
        self._lapse_overdue()
        known = (lease_id for lease_id, lease in self._state.active().items() if lease.key == key)
        lease_id = next(known, None) if key else None
        return self._leased(self._hand_out(worker_id, key) if lease_id is None else lease_id)

    def _hand_out(self, worker_id: str, key: str) -> str:
        """Leases the item that is next; returns the lease."""
        state = self._state
        if state.waiting:
            index = min(state.waiting)
            position, attempt = state.waiting[index]
        elif state.pending_forks:
            index, position, attempt = state.next_index, -1 - state.pending_forks[-1], 0
        else:
            if state.cursor == len(state.order):
                self._begin_epoch()
            index, position, attempt = state.next_index, state.order[state.cursor], 0
        lease_id = f"{state.boot}.{state.next_lease}"
        self._record(
            kind="leased",
            lease=lease_id,
            index=index,
            position=position,
            prompt=self._task_at(position).task_id,
            attempt=attempt,
            worker=worker_id,
            key=key,
        )
        self._granted_at[lease_id] = self._clock()
        return lease_id

    def _leased(self, lease_id: str) -> LeasedTask:
        """An active lease with everything its worker needs."""
        state, lease = self._state, self._state.leases[lease_id]
        task = self._task_at(lease.position)
        row, context = state.ledger.row(task.task_id), Context()
        if self._guidance is not None and lease.position >= 0:
            context = self._guidance.context(lease.index, task, row, state.epoch)
        owner = str(task.metadata.get(DONORS_OF, task.task_id))
        return LeasedTask(
            lease_id=lease_id,
            task=task,
            context=context,
            attempt=lease.attempt,
            index=lease.index,
            row=row,
            donors={table: self._donors(owner, table) for table in self._tables},
        )

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
            **self._details(outcome),
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
        self._blocks.sync()
        write_json(path, {"position": self._journal.end, "state": self._state.to_json()})
        tables = (tables.values() for tables in self._state.donors.values())
        self._blocks.keep_only(blob for by_table in tables for rows in by_table for _, blob in rows)
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
            "prompts_retired": state.ledger.num_retired,
            "forks": state.counters["forks"],
            "forks_forgotten": state.counters["forks_forgotten"],
            "answers_stashed": state.counters["stashed"],
        }
        return {name: float(value) for name, value in values.items()}

    def close(self) -> None:
        """Closes the log; the feed must not be used any more."""
        self._journal.close()
        self._blocks.close()

    # -- donors, forks, stages ---------------------------------------------------------------------------------------

    def _task_at(self, position: int) -> Task:
        return self._tasks[position] if position >= 0 else task_from_json(self._state.forks[fork_number(position)])

    def _donors(self, prompt_id: str, table: str) -> tuple[Trajectory, ...]:
        """Answers that were stashed for a prompt, oldest first; one that cannot be read back is left out."""
        if (self._state.ledger.mean_rate or 0.0) < self._donors_from:
            return ()
        rows = self._state.donors.get(prompt_id, {}).get(table, ())
        blocks = [self._blocks.read(blob) for _, blob in rows]
        return tuple(decode_group(block).trajectories[0] for block in blocks if block is not None)

    def _details(self, outcome: Outcome) -> dict[str, Any]:
        """What an event says beyond the counts of every outcome."""
        stashed = {
            table: [self._written(outcome.prompt_id, answer) for answer in answers]
            for table, answers in outcome.stashed.items()
        }
        details = {
            "helped_scored": outcome.helped_scored,
            "helped_correct": outcome.helped_correct,
            "retired": outcome.is_retired,
            "stage_change": self._stage_change(outcome),
            "history": dict(outcome.history),
            "context": None if outcome.context == Context() else asdict(outcome.context),
            "stashed": stashed,
            "forks": [task_to_json(task) for task in outcome.forks],
        }
        return {name: value for name, value in details.items() if value}

    def _written(self, prompt_id: str, answer: Trajectory) -> list[Any]:
        """Packs one donor; its source is OWN_PAST from here on."""
        group_id = f"stashed:{answer.trajectory_id}"
        member = replace(answer, group_id=group_id, source=Source.OWN_PAST)
        group = Group(group_id=group_id, prompt_id=prompt_id, source=Source.OWN_PAST, trajectories=(member,))
        digest = hashlib.blake2b(answer.token_ids.tobytes(), digest_size=8).hexdigest()
        return [digest, self._blocks.append("own", encode_group(group))]

    def _stage_change(self, outcome: Outcome) -> int:
        scored = outcome.num_scored + outcome.helped_scored
        if self._stages is None or scored == 0:
            return 0
        rate = (outcome.num_correct + outcome.helped_correct) / scored
        stage = self._state.ledger.row(outcome.prompt_id).stage
        if rate >= self._stages.raise_from:
            return int(stage < self._stages.highest)
        return -int(rate <= self._stages.lower_to and stage > 0)

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
