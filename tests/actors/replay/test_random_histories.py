"""Random histories with crashes: the replay cache against a simple model, and its journal against the audit."""

from __future__ import annotations

import copy
import itertools
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors.config import ReplayConfig
from actors.ports import StaleEpochError
from actors.replay.core import ReplayCore
from actors.replay.log import ReplayLog
from actors.replay.records import Status
from orchestrator.audit import audit_run
from rewards.trajectory import Group, PolicyVersion
from tests.actors.replay.drivers import expert, ids, live, write_checkpoint

BATCH = 3
OPEN = ("ready", "leased")
HELD = ("ready", "leased", "committed")


@dataclass
class Row:
    """A group in the model."""

    source: str
    budget: int | None
    version: int | None
    arrival: int
    state: str = "ready"
    uses: list[int] = field(default_factory=list)

    @property
    def uses_left(self) -> int:
        return 0 if self.budget is None or self.state not in OPEN else self.budget - len(self.uses)


@dataclass
class Model:
    """What must be true, written as directly as possible: no logs, no indexes, no events."""

    max_age: int
    live_uses: int
    quota: int  # expert groups in a batch
    groups: dict[str, Row] = field(default_factory=dict)
    tickets: set[str] = field(default_factory=set)
    num_issued: int = 0
    num_refused: int = 0
    versions: dict[int, int] = field(default_factory=dict)
    steps: list[list[str]] = field(default_factory=list)
    live_in_step: list[int] = field(default_factory=list)
    lease: tuple[str, list[str]] | None = None
    sealed_through: int = -1

    def in_state(self, state: str, source: str) -> list[str]:
        return [g for g, row in self.groups.items() if row.state == state and row.source == source]

    def age(self, version: int) -> int:
        return len(self.steps) - self.versions[version]

    def num_experts(self) -> int:
        return min(self.quota, sum(row.source == "expert" and row.state in OPEN for row in self.groups.values()))

    def may_take(self) -> bool:
        rows = [row for row in self.groups.values() if row.source == "live" and row.state in OPEN]
        first = BATCH - self.num_experts()
        if self.lease is not None:
            first = sum(self.groups[g].source == "live" for g in self.lease[1])
        total = first + self.max_age * (BATCH - self.num_experts())
        supplied = sum(row.uses_left for row in rows) + len(self.tickets) * self.live_uses
        return supplied < total or len(rows) + len(self.tickets) < first

    def next_live(self) -> list[str]:
        """Live groups of the next batch, in order; fewer than needed when it must wait."""
        order = {g: (len(r.uses), r.version, r.arrival) for g, r in self.groups.items()}
        return sorted(self.in_state("ready", "live"), key=order.__getitem__)[: BATCH - self.num_experts()]

    def commit(self, dropped: list[str]) -> None:
        assert self.lease is not None
        step, (_, group_ids) = len(self.steps), self.lease
        self.lease = None
        self.steps.append([g for g in group_ids if g not in dropped])
        self.live_in_step.append(sum(self.groups[g].source == "live" for g in group_ids))
        for group_id in group_ids:
            row = self.groups[group_id]
            if group_id in dropped:
                row.state = "evicted"
                continue
            row.uses.append(step)
            row.state = "ready" if row.budget is None or len(row.uses) < row.budget else "committed"
        self.sweep()

    def sweep(self) -> None:
        for row in self.groups.values():
            if row.state == "ready" and row.version is not None and self.age(row.version) > self.max_age:
                row.state = "evicted"

    def seal(self, step: int) -> None:
        self.sealed_through = step
        for row in self.groups.values():
            if row.state == "committed" and max(row.uses) <= step:
                row.state = "sealed"

    def take_all_back(self) -> None:
        self.tickets.clear()
        if self.lease is not None:
            for group_id in self.lease[1]:
                self.groups[group_id].state = "ready"
        self.lease = None

    def roll_back(self, manifest: list[list[str]]) -> None:
        self.take_all_back()
        self.steps = [list(batch) for batch in manifest]
        del self.live_in_step[len(manifest) :]
        self.sealed_through = min(self.sealed_through, len(self.steps) - 1)
        self.versions = {v: min(step, len(self.steps)) for v, step in self.versions.items()}
        for row in self.groups.values():
            undone = [step for step in row.uses if step >= len(self.steps)]
            row.uses = [step for step in row.uses if step < len(self.steps)]
            if undone and row.state in HELD:
                row.state = "ready"
            elif undone and row.state == "sealed" and not row.uses:
                row.state = "evicted"
        self.sweep()


class Histories(RuleBasedStateMachine):
    """Drives a core and a model side by side; after every rule they must agree."""

    @initialize(max_age=st.integers(0, 2), live_uses=st.integers(1, 2), quota=st.integers(0, 1), seed=st.integers(0, 9))
    def begin(self, max_age, live_uses, quota, seed):
        self.run_dir = Path(tempfile.mkdtemp(prefix="histories-"))
        self.folder = self.run_dir / "state" / "replay"
        self.config = ReplayConfig(
            groups_per_update=BATCH,
            max_age=max_age,
            max_uses={"live": live_uses},
            quotas={"expert": "1/3"} if quota else {},
            ticket_timeout_s=10.0,
            lease_timeout_s=7.0,
        )
        self.seed, self.now, self.numbers = seed, 0.0, itertools.count()
        self.model = Model(max_age, live_uses, quota)
        self.held: dict[str, tuple] = {}  # tickets by id with the time they expire
        self.lease_expires = None
        self.dead_tickets: list = []
        self.dead_leases: list[tuple[int, str]] = []
        self.known: list[Group] = []
        self.manifests: list[list[list[str]]] = []
        self.experts = [expert(f"e{i}") for i in range(3)] if quota else []
        self.log: ReplayLog | None = None
        self.open()
        self.announce()

    # -- a worker -------------------------------------------------------------------------------------------------

    @rule()
    def take_ticket(self):
        ticket = self.core.take_ticket("w", 2, self.now)
        assert (ticket is not None) == self.model.may_take(), self.core.admission()
        if ticket is not None:
            assert ticket.ticket_id not in {*self.held, *(dead.ticket_id for dead in self.dead_tickets)}
            self.held[ticket.ticket_id] = (ticket, self.now + 10.0)
            self.model.tickets.add(ticket.ticket_id)
            self.model.num_issued += 1
            assert ticket.min_step <= len(self.model.steps)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), behind=st.integers(0, 3))
    def put(self, data, behind):
        self.store(self.draw_ticket(data), max(0, max(self.model.versions) - behind))

    @rule(num=st.integers(1, 4))
    def work(self, num):
        """A worker that does what it should, several times."""
        for _ in range(num):
            self.take_ticket()
            if self.held:
                self.store(self.held.pop(min(self.held))[0], max(self.model.versions))

    def store(self, ticket, version):
        group = live(ticket, version=version)
        reason = self.core.put(group)
        self.model.tickets.discard(ticket.ticket_id)
        if self.model.age(version) > self.model.max_age:
            assert reason == "too_old"
            self.model.num_refused += 1
            return
        assert reason is None
        self.known.append(group)
        self.model.groups[group.group_id] = Row("live", self.model.live_uses, version, next(self.numbers))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def put_bad(self, data):
        ticket = self.draw_ticket(data)
        group = live(ticket, scores=(None, None))
        assert self.core.put(group) == "unscored"
        assert self.core.put(group) == "unscored"
        self.model.tickets.discard(ticket.ticket_id)
        self.model.num_refused += 1

    @precondition(lambda self: self.dead_tickets)
    @rule(data=st.data())
    def put_late(self, data):
        ticket = data.draw(st.sampled_from(self.dead_tickets))
        group = live(ticket, version=max(self.model.versions), tags={"late": next(self.numbers)})
        if group.group_id not in self.model.groups and group.group_id not in self.core._refused:
            assert self.core.put(group) is not None
            self.model.num_refused += 1

    @precondition(lambda self: self.known)
    @rule(data=st.data(), same=st.booleans())
    def put_again(self, data, same):
        group = data.draw(st.sampled_from(self.known))
        if group.group_id not in self.core.state.entries:
            return  # forgotten after its seal; its ticket is gone as well, so it would be refused
        if same:
            assert self.core.put(group) is None
        else:
            with pytest.raises(ValueError, match="known with another payload"):
                self.core.put(live_with_tag(group))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def return_ticket(self, data):
        ticket = self.draw_ticket(data)
        self.core.return_ticket(ticket.ticket_id, "dropped:constant")
        self.core.return_ticket(ticket.ticket_id, "failed")
        self.model.tickets.discard(ticket.ticket_id)
        self.dead_tickets.append(ticket)

    # -- the learner ----------------------------------------------------------------------------------------------

    @rule()
    def lease(self):
        model, step = self.model, len(self.model.steps)
        expected, num_experts = model.next_live(), model.num_experts()
        batch = self.core.lease(step, self.now)
        if model.lease is not None:
            assert batch is not None
            assert (batch.lease_id, ids(batch)) == model.lease
        elif len(expected) + num_experts < BATCH:
            assert batch is None
            assert self.core.shortage(step).startswith(f"need {BATCH - num_experts} live groups: {len(expected)} ready")
            return
        else:
            assert batch is not None
            assert ids(batch)[num_experts:] == expected
            assert sum(batch.shortfall.values()) == model.quota - num_experts
            assert batch.ages == {g: model.age(model.groups[g].version or 0) for g in expected}
            assert max(batch.ages.values()) <= model.max_age
            self.check_passes(ids(batch)[:num_experts])
            for group_id in ids(batch):
                model.groups[group_id].state = "leased"
            model.lease = (batch.lease_id, ids(batch))
        self.lease_expires = self.now + 7.0

    def check_passes(self, handed_out):
        """No expert group is used again before the others were."""
        fewest = min((len(self.model.groups[g].uses) for g in self.model.in_state("ready", "expert")), default=0)
        assert all(len(self.model.groups[g].uses) == fewest for g in handed_out)

    @precondition(lambda self: self.model.lease is not None)
    @rule(data=st.data(), drops=st.booleans())
    def commit(self, data, drops):
        self.finish_step(data.draw(st.lists(st.sampled_from(self.model.lease[1]), unique=True)) if drops else [])

    def finish_step(self, dropped):
        step, (lease_id, _) = len(self.model.steps), self.model.lease
        self.core.commit(step, lease_id, dict.fromkeys(dropped, "nan"))
        self.core.commit(step, lease_id, {})
        self.model.commit(dropped)
        self.lease_expires = None
        self.saved.clear()

    @rule(num=st.integers(1, 3))
    def train(self, num):
        """Whole steps, as they go when nothing happens."""
        for _ in range(num):
            self.work(num=4)
            self.lease()
            if self.model.lease is not None:
                self.finish_step([])
                self.announce()

    @precondition(lambda self: self.dead_leases)
    @rule(data=st.data())
    def commit_late(self, data):
        step, lease_id = data.draw(st.sampled_from(self.dead_leases))
        with pytest.raises(StaleEpochError):
            self.core.commit(step, lease_id)

    @rule()
    def announce(self):
        version = max(self.model.versions, default=-1) + 1
        for _ in range(2):
            self.core.announce_version(PolicyVersion(version), len(self.model.steps))
        self.model.versions[version] = len(self.model.steps)

    @rule()
    def checkpoint(self):
        self.manifests.append(copy.deepcopy(self.model.steps))
        self.core.snapshot()
        self.saved.clear()

    @precondition(lambda self: self.manifests)
    @rule()
    def seal(self):
        step = len(self.manifests[-1]) - 1
        self.core.seal(step)
        self.saved.clear()
        if step > self.model.sealed_through:
            self.model.seal(step)

    @rule(back=st.integers(0, 2))
    def roll_back(self, back):
        """To the newest checkpoint, or an older one because the newer are damaged."""
        del self.manifests[max(0, len(self.manifests) - back) :]
        manifest = self.manifests[-1] if self.manifests else []
        self.core.rollback(len(manifest), dict(enumerate(manifest)))
        self.bury()
        self.model.roll_back(manifest)
        self.saved.clear()

    # -- time and death -------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1.0, 4.0, 8.0]))
    def pass_time(self, seconds):
        self.now += seconds
        self.core.expire(self.now)
        for ticket_id, (ticket, expires) in list(self.held.items()):
            if expires <= self.now:
                del self.held[ticket_id]
                self.model.tickets.discard(ticket_id)
                self.dead_tickets.append(ticket)
        if self.lease_expires is not None and self.lease_expires <= self.now:
            assert self.model.lease is not None
            self.dead_leases.append((len(self.model.steps), self.model.lease[0]))
            for group_id in self.model.lease[1]:
                self.model.groups[group_id].state = "ready"
            self.model.lease = self.lease_expires = None

    @rule()
    def snapshot(self):
        self.core.snapshot()
        self.saved.clear()

    @rule(torn=st.binary(max_size=40))
    def crash(self, torn):
        """The process dies, perhaps while it appends: what was written before survives."""
        self.close()
        journal = self.folder / "journal.jsonl"
        with journal.open("ab") as file:
            file.write(torn.replace(b"\n", b" "))
        self.open()

    @precondition(lambda self: self.saved)
    @rule(data=st.data())
    def power_cut(self, data):
        """The machine dies: what was not forced to disk may be gone, from any moment on."""
        end, model, held, dead_leases = data.draw(st.sampled_from(self.saved))
        self.close()
        with (self.folder / "journal.jsonl").open("r+b") as file:
            file.truncate(end)
        self.bury()
        self.model, self.held = copy.deepcopy(model), dict(held)
        self.dead_leases += dead_leases
        self.known = [group for group in self.known if group.group_id in self.model.groups]
        self.open()

    # -- machinery ------------------------------------------------------------------------------------------------

    def open(self):
        self.log = ReplayLog(self.folder, fsync="never", max_file_bytes=4096)
        self.core = ReplayCore(self.config, seed=self.seed, log=self.log)
        self.core.preload(self.experts)
        for group in self.experts:
            self.model.groups.setdefault(group.group_id, Row("expert", None, None, next(self.numbers)))
        self.bury()
        self.model.take_all_back()
        self.saved: list = []

    def close(self):
        self.log.close()

    def bury(self):
        """Whatever was handed out before is void."""
        self.dead_tickets += [ticket for ticket, _ in self.held.values()]
        self.held.clear()
        if self.model.lease is not None:
            self.dead_leases.append((len(self.model.steps), self.model.lease[0]))
        self.lease_expires = None

    def draw_ticket(self, data):
        ticket_id = data.draw(st.sampled_from(sorted(self.held)))
        return self.held.pop(ticket_id)[0]

    @invariant()
    def save(self):
        """Remembers a moment at which the power may be cut."""
        if self.log is not None:
            leases = [] if self.model.lease is None else [(len(self.model.steps), self.model.lease[0])]
            self.saved.append((self.log.journal.end, copy.deepcopy(self.model), dict(self.held), leases))

    @invariant()
    def agree(self):
        if self.log is None:
            return
        model, state = self.model, self.core.state
        assert set(state.tickets) == model.tickets == set(self.held)
        assert state.counters["tickets_issued"] == model.num_issued
        assert state.counters["refused"] == model.num_refused
        assert state.counters["accepted"] == len(model.groups)
        assert state.steps_committed == len(model.steps)
        assert state.live_consumed == sum(model.live_in_step)
        assert [state.history[step].trained for step in range(len(model.steps))] == model.steps
        assert (state.lease and (state.lease.lease_id, state.lease.group_ids)) == model.lease
        assert state.versions == model.versions
        for group_id, row in model.groups.items():
            entry = state.entries.get(group_id)
            if entry is None:
                assert row.state in ("sealed", "evicted"), group_id
            else:
                assert (entry.status.value, entry.uses) == (row.state, row.uses), group_id
        for status in (Status.READY, Status.LEASED, Status.COMMITTED):
            for source in ("live", "expert"):
                assert state.num(status, source) == len(model.in_state(status.value, source))
        assert set(state.payloads) == {g for g, row in model.groups.items() if row.state in HELD}
        for row in model.groups.values():
            assert row.budget is None or len(row.uses) <= row.budget

    def teardown(self):
        if getattr(self, "log", None) is None:
            return
        try:
            if self.manifests:
                manifest = dict(enumerate(self.manifests[-1]))
                write_checkpoint(self.run_dir / "checkpoints", len(manifest), manifest)
            report = audit_run(self.run_dir)
            assert report.ok, "\n".join(report.lines())
            assert report.steps_committed == len(self.model.steps)
            assert sum(report.tickets.values()) == self.model.num_issued
            accepted = sum(n for (_, state, _), n in report.groups.items() if state != "refused")
            assert accepted == len(self.model.groups)
        finally:
            self.close()
            shutil.rmtree(self.run_dir)


def live_with_tag(group: Group) -> Group:
    return replace(group, tags={"another": "payload"})


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=50, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
