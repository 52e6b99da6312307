"""Long random histories over everything a replay cache can do, with crashes; its accounts are checked after each event.

Unlike `test_random_histories` this follows no model of the order of groups: it keeps accounts of its own.
"""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from actors.config import ReplayConfig
from actors.ports import StaleEpochError, Ticket
from actors.replay.config import TableConfig
from actors.replay.core import ReplayCore
from actors.replay.log import ReplayLog
from actors.replay.records import HELD, Status
from orchestrator.audit import audit_run
from rewards.trajectory import Group, PolicyVersion, Source
from tests.actors.replay.drivers import expert, live, write_checkpoint

BATCH = 4
MAX_AGE = 2
PAST = TableConfig(
    order="prioritised",
    priority="ratio",
    max_groups=6,
    max_per_prompt=2,
    remove="lowest_priority",
    max_age=4,
    uses_per_insert=Fraction(1, 2),
    slack=Fraction(3),
)
CONFIG = ReplayConfig(
    groups_per_update=BATCH,
    max_age=MAX_AGE,
    quotas={"expert": Fraction(1, 5), "own_past": Fraction(1, 4)},
    max_uses={"live": 2, "own_past": 3},
    tables={"own_past": PAST, "expert": TableConfig(order="uniform")},
    memory_bytes=4000,
    journal_bytes=60_000,
    ticket_timeout_s=40.0,
    lease_timeout_s=25.0,
)
BUDGETS = {Source.LIVE: 2, Source.OWN_PAST: 3, Source.EXPERT: None}


class Soak:
    """One run under random events."""

    def __init__(self, run_dir: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.run_dir, self.folder = run_dir, run_dir / "state" / "replay"
        self.now, self.num_versions, self.num_crashes = 0.0, 0, 0
        self.held: dict[str, Ticket] = {}
        self.stored: list[Group] = []
        self.batches: list[list[str]] = []
        self.sources: dict[str, Source] = {}
        self.manifest: list[list[str]] = []
        self.dead_leases: list[tuple[int, str]] = []
        self.fates: Counter[str] = Counter()
        self.open()
        self.announce()

    def run(self, num_events: int) -> None:
        names, weights = zip(*EVENTS.items(), strict=True)
        for name in self.random.choices(names, weights, k=num_events):
            getattr(self, name)()
            self.check()

    def open(self) -> None:
        self.log = ReplayLog(self.folder, fsync="never", max_file_bytes=20_000)
        self.core = ReplayCore(CONFIG, seed=1, log=self.log)
        self.core.preload([expert(f"e{i}") for i in range(5)])
        self.bury()

    def bury(self) -> None:
        """Whatever was handed out before is void."""
        self.held.clear()
        self.leased: tuple[int, str, list[str]] | None = None

    # -- events ---------------------------------------------------------------------------------------------------

    def take_ticket(self) -> None:
        ticket = self.core.take_ticket(self.random.choice("ab"), 2, self.now)
        if ticket is not None:
            self.held[ticket.ticket_id] = ticket

    def put(self) -> None:
        if not self.held:
            return
        ticket = self.held.pop(self.random.choice(sorted(self.held)))
        version = max(0, self.num_versions - 1 - self.random.choice([0, 0, 0, 1, 2, 5]))
        scores = self.random.choice([(1.0, 0.0), (1.0, 1.0), (0.0, 0.0), (None, None)])
        group = live(ticket, version=version, scores=scores, prompt_id=f"p{self.random.randrange(4)}")
        reason = self.core.put(group)
        too_old = len(self.batches) - self.core.state.versions[version] > MAX_AGE
        assert (reason is None) == (scores != (None, None) and not too_old), reason
        if reason is None:
            self.stored = [*self.stored[-50:], group]

    def put_again(self) -> None:
        known = [group for group in self.stored if group.group_id in self.core.state.entries]
        if known:
            before = self.core.state.counters["accepted"]
            assert self.core.put(self.random.choice(known)) is None
            assert self.core.state.counters["accepted"] == before

    def return_ticket(self) -> None:
        if self.held:
            ticket_id = self.random.choice(sorted(self.held))
            del self.held[ticket_id]
            self.core.return_ticket(ticket_id, "dropped:constant")

    def release_worker(self) -> None:
        self.core.release_worker("a")
        self.held = {name: ticket for name, ticket in self.held.items() if ticket.worker_id != "a"}

    def lease(self) -> None:
        step = len(self.batches)
        batch = self.core.lease(step, self.now)
        if batch is None:
            assert self.core.shortage(step)
            assert self.leased is None
            return
        names = [group.group_id for group in batch.groups]
        assert len(set(names)) == BATCH == len(names)
        if self.leased is not None:
            assert self.leased == (step, batch.lease_id, names)
        self.leased = step, batch.lease_id, names
        self.sources |= {group.group_id: group.source for group in batch.groups}
        assert all(age <= MAX_AGE for age in batch.ages.values())
        for group in batch.groups:
            entry = self.core.state.entries[group.group_id]
            if group.source is Source.OWN_PAST:
                assert step - self.core.state.versions[entry.version or 0] <= (PAST.max_age or 0)
            assert (group.group_id in batch.ages) == (group.source is Source.LIVE)

    def commit(self) -> None:
        if self.leased is None:
            return
        step, lease_id, names = self.leased
        dropped = [name for name in names if self.random.random() < 0.05]
        measured = {name: {"ratio": self.random.random()} for name in names}
        self.core.commit(step, lease_id, dict.fromkeys(dropped, "nan"), measured)
        self.core.commit(step, lease_id, {}, measured)
        self.batches.append([name for name in names if name not in dropped])
        self.leased = None
        self.dead_leases = [*self.dead_leases[-5:], (step, "l0-0-none")]
        if self.random.random() < 0.9:
            self.announce()

    def commit_late(self) -> None:
        if self.dead_leases:
            with pytest.raises(StaleEpochError):
                self.core.commit(*self.random.choice(self.dead_leases))

    def announce(self) -> None:
        self.core.announce_version(PolicyVersion(self.num_versions), len(self.batches))
        self.num_versions += 1

    def checkpoint(self) -> None:
        self.manifest = [list(batch) for batch in self.batches]
        self.core.snapshot()

    def seal(self) -> None:
        if self.manifest:
            self.core.seal(len(self.manifest) - 1)

    def roll_back(self) -> None:
        self.core.rollback(len(self.manifest), dict(enumerate(self.manifest)))
        self.batches = [list(batch) for batch in self.manifest]
        self.bury()

    def pass_time(self) -> None:
        self.now += self.random.choice([1.0, 5.0, 30.0])
        self.core.expire(self.now)
        self.held = {name: ticket for name, ticket in self.held.items() if name in self.core.state.tickets}
        if self.core.state.lease is None and self.leased is not None:
            self.dead_leases.append(self.leased[:2])
            self.leased = None

    def crash(self) -> None:
        """The process dies, perhaps while it appends an event or a block; what was written before survives."""
        self.num_crashes += 1
        before = self.rows()
        history = {step: list(row.trained) for step, row in self.core.state.history.items()}
        if self.leased is not None:
            self.dead_leases.append(self.leased[:2])
        self.log.close()
        if self.random.random() < 0.5:
            with (self.folder / "journal.jsonl").open("ab") as file:
                file.write(b'1234abcd {"kind":"committed","lea')
        self.open()
        lost_leases = {g: (Status.READY if row[0] is Status.LEASED else row[0], *row[1:]) for g, row in before.items()}
        assert self.rows() == lost_leases
        assert {step: row.trained for step, row in self.core.state.history.items()} == history

    def rows(self) -> dict[str, tuple[Status, list[int], float]]:
        return {g: (e.status, list(e.uses), e.priority) for g, e in self.core.state.entries.items()}

    # -- what must hold -------------------------------------------------------------------------------------------

    def check(self) -> None:
        state = self.core.state
        state.check()
        assert set(state.tickets) == set(self.held)
        assert sum(state.ticket_fates.values()) + len(self.held) == state.counters["tickets_issued"]
        assert state.steps_committed == len(self.batches)
        assert (state.lease and state.lease.group_ids) == (self.leased and self.leased[2])
        held = [entry for entry in state.entries.values() if entry.status in HELD]
        assert state.held_bytes == sum(entry.num_bytes for entry in held)
        assert len(state.payloads) == len(held)
        assert state.payloads.memory_bytes <= CONFIG.memory_bytes
        assert len(state.queues.get("own_past", ())) <= (PAST.max_groups or 0) + BATCH  # a returned batch may exceed it
        assert all(entry.budget is None or len(entry.uses) <= entry.budget for entry in held)

    def close(self) -> None:
        """The accounts of the whole run."""
        trained = Counter(name for batch in self.batches for name in batch)
        for name, num in trained.items():
            budget = BUDGETS[self.sources[name]]
            assert budget is None or num <= budget, name
        assert [self.core.state.history[step].trained for step in range(len(self.batches))] == self.batches
        self.core.rollback(len(self.manifest), dict(enumerate(self.manifest)))
        write_checkpoint(self.run_dir / "checkpoints", len(self.manifest), dict(enumerate(self.manifest)))
        self.log.close()
        report = audit_run(self.run_dir)
        assert report.ok, "\n".join(report.lines())


EVENTS = {
    "take_ticket": 30, "put": 30, "put_again": 2, "return_ticket": 3, "release_worker": 0.5, "lease": 14, "commit": 14,
    "commit_late": 1, "pass_time": 2, "checkpoint": 2, "seal": 3, "roll_back": 0.5, "crash": 0.6,
}  # fmt: skip


def soak(folder: Path, seed: int, num_events: int) -> Soak:
    run = Soak(folder, seed)
    run.run(num_events)
    run.close()
    return run


def test_random_events_with_crashes_keep_every_account(tmp_path):
    run = soak(tmp_path, 0, 2500)
    assert run.num_crashes > 5
    assert len(run.batches) > 40
    sources = Counter(run.sources.values())
    assert min(sources[source] for source in (Source.LIVE, Source.OWN_PAST, Source.EXPERT)) >= 3
    assert run.log.journal.generation > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
def test_a_hundred_thousand_events(tmp_path, seed):
    """20 runs of 5000 events."""
    assert soak(tmp_path, seed, 5000).num_crashes > 10
