"""A cache of several shards is the cache of one: same ports, exact quotas, nothing lost when a shard dies."""

import asyncio
import shutil
from collections import Counter
from typing import cast

import pytest

from actors.config import ReplayConfig
from actors.ports import RunFinished, StaleEpochError, StalledError
from actors.replay import coordinator
from actors.replay.config import TableConfig
from actors.replay.coordinator import ReplayCoordinator
from actors.replay.shard import ReplayShard, ShardPort, shard_of_id
from actors.replay.sharded import ShardedReplay
from orchestrator.audit import audit_run
from rewards.trajectory import PolicyVersion
from tests.actors.replay.drivers import expert, live

MIXED = {"groups_per_update": 6, "max_age": 1, "quotas": {"expert": "1/4"}}


class Cluster:
    """Shards, coordinator and port in one process; each of them can die and come back."""

    def __init__(self, folder, num_shards=3, **settings):
        self.config = ReplayConfig(**{**MIXED, **settings})
        self.folder, self.now = folder, 0.0
        self.shards = [Restartable(self, number) for number in range(num_shards)]
        self.restart_coordinator()

    def restart_coordinator(self):
        shards = cast("list[ShardPort]", self.shards)
        self.coordinator = ReplayCoordinator(self.config, shards, clock=lambda: self.now)
        self.port = ShardedReplay(self.coordinator, shards)

    async def begin(self):
        await self.port.announce_version(PolicyVersion(0), 0)
        if self.config.quotas:
            await self.port.preload([expert(f"e{i}") for i in range(12)])
        return self

    async def fill(self, version=0):
        """Puts groups until no ticket is granted; ids of the stored ones."""
        stored = []
        while self.coordinator._levels == [] or self.coordinator._admission().due is not None:
            group = live(await self.port.take_ticket("w", 2), version=version)
            assert await self.port.put(group) is None
            stored.append(group.group_id)
        return stored

    async def train(self, step):
        await self.fill(version=step)
        batch = await self.port.lease(step)
        await self.port.commit(step, batch.lease_id)
        await self.port.announce_version(PolicyVersion(step + 1), step + 1)
        return [group.group_id for group in batch.groups]


class Restartable:
    """A shard in a process that may be killed: what was not written is gone, calls to a dead one fail."""

    def __init__(self, cluster, number):
        self.cluster, self.number, self.dies_before = cluster, number, set()
        self.start()

    def start(self):
        self.shard = ReplayShard(
            self.cluster.config,
            directory=self.cluster.folder,
            seed=3,
            shard=self.number,
            clock=lambda: self.cluster.now,
        )

    def __getattr__(self, method):
        async def call(*args):
            if method in self.dies_before:
                self.dies_before.discard(method)
                self.start()
                raise ConnectionError(f"shard {self.number} died before {method}")
            return await getattr(self.shard, method)(*args)

        return call


def statuses(cluster):
    """Groups by state over all shards, and that each shard's own books balance."""
    counts = Counter()
    for shard in cluster.shards:
        shard.shard._core.state.check()
        counts.update(shard.shard._core.state.statuses)
    return {key: num for key, num in counts.items() if num}


async def test_quotas_are_exact_over_all_shards_and_every_group_is_trained_once(tmp_path):
    cluster = await Cluster(tmp_path / "state" / "replay").begin()
    batches = [await cluster.train(step) for step in range(8)]
    for steps in range(1, 9):
        experts = sum(name.startswith("e") for batch in batches[:steps] for name in batch)
        assert experts == steps * 6 // 4
    trained = Counter(name for batch in batches for name in batch if not name.startswith("e"))
    assert set(trained.values()) == {1}
    assert {name.partition("t")[0] for name in trained} == {"g-s0", "g-s1", "g-s2"}
    assert statuses(cluster)["committed/live"] == sum(trained.values()) == 48 - 12
    stats = await cluster.port.stats()
    shutil.move(tmp_path / "state" / "replay", tmp_path / "state" / "elsewhere")
    with pytest.raises(FileNotFoundError):
        audit_run(tmp_path)
    shutil.move(tmp_path / "state" / "elsewhere", tmp_path / "state" / "replay")
    report = audit_run(tmp_path)
    assert report.findings == ()
    assert (report.steps_committed, sum(report.ages.values())) == (8, 36)
    assert sum(report.tickets.values()) == stats["tickets_issued"]
    assert (stats["steps_committed"], stats["groups/committed/live"], stats["replay_shards"]) == (8, 36, 3)


async def test_experts_go_in_whole_passes_over_all_shards(tmp_path):
    cluster = await Cluster(tmp_path, quotas={"expert": 1}, groups_per_update=4).begin()
    batches = []
    for step in range(6):
        batch = await cluster.port.lease(step)
        await cluster.port.commit(step, batch.lease_id)
        batches += [group.group_id for group in batch.groups]
    assert sorted(batches[:12]) == sorted(batches[12:]) == sorted(f"e{i}" for i in range(12))
    assert {shard_of_id(name, 3) for name in batches} == {0, 1, 2}


async def test_admission_is_the_bound_of_one_cache(tmp_path):
    cluster = await Cluster(tmp_path, quotas={}).begin()
    tickets = [await cluster.port.take_ticket("w", 2) for _ in range(12)]
    waiting = asyncio.ensure_future(cluster.port.take_ticket("late", 2))
    for _ in range(20):
        await asyncio.sleep(0)
    stats = await cluster.port.stats()
    assert "0 live groups accepted + 12 running reach the bound of 12" in stats["waits"]["late"]
    await cluster.port.return_ticket(tickets[4].ticket_id, "dropped:constant")
    assert (await waiting).worker_id == "late"
    assert Counter(ticket.ticket_id[:2] for ticket in tickets) == {"s0": 4, "s1": 4, "s2": 4}


async def test_waits_end_with_their_reason_or_with_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(coordinator, "POLL_S", 0.01)
    cluster = await Cluster(tmp_path, wait_timeout_s=0.05, quotas={}).begin()
    with pytest.raises(StalledError, match=r"learner waited 0.05 s: need 6 live groups: 0 ready, 0 running"):
        await cluster.port.lease(0)
    await cluster.fill()
    with pytest.raises(StalledError, match=r"w waited 0.05 s: 12 live groups accepted"):
        await cluster.port.take_ticket("w", 2)
    await cluster.port.finish()
    for wait in (cluster.port.take_ticket("w", 2), cluster.port.lease(0)):
        with pytest.raises(RunFinished):
            await wait


@pytest.mark.parametrize("when", ["before fetch", "before commit", "during hand_out", "during commit"])
async def test_a_killed_shard_costs_no_group_and_no_second_training(tmp_path, when):
    cluster = await Cluster(tmp_path).begin()
    first = await cluster.train(0)
    await cluster.fill(version=1)
    victim = cluster.shards[1]
    before = statuses(cluster)
    if when == "during hand_out":
        victim.dies_before.add("hand_out")
        with pytest.raises(ConnectionError):
            await cluster.port.lease(1)
        assert statuses(cluster) == before
    planned = await cluster.coordinator.lease(1)
    if when == "before fetch":
        victim.start()
    batch = await cluster.port.lease(1)
    assert batch.lease_id == planned.lease_id
    if when == "before commit":
        victim.start()
    if when == "during commit":
        victim.dies_before.add("commit")
        with pytest.raises(ConnectionError):
            await cluster.port.commit(1, batch.lease_id)
    await cluster.port.commit(1, batch.lease_id)
    await cluster.port.commit(1, batch.lease_id)
    await cluster.port.announce_version(PolicyVersion(2), 2)
    rest = [await cluster.train(step) for step in range(2, 5)]
    trained = Counter([*first, *(group.group_id for group in batch.groups), *(name for b in rest for name in b)])
    assert all(num == 1 for name, num in trained.items() if not name.startswith("e"))
    assert {shard.shard._core.state.steps_committed for shard in cluster.shards} == {5}
    assert statuses(cluster)["committed/live"] == sum(not name.startswith("e") for name in trained)


async def test_tickets_of_a_killed_shard_are_void_and_their_groups_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr(coordinator, "POLL_S", 0.01)
    cluster = await Cluster(tmp_path, quotas={}).begin()
    tickets = [await cluster.port.take_ticket("w", 2) for _ in range(12)]
    cluster.shards[2].start()
    for _ in range(4):  # the coordinator finds out by itself
        await cluster.port.take_ticket("w", 2)
    lost = next(ticket for ticket in tickets if ticket.ticket_id.startswith("s2"))
    assert await cluster.port.put(live(lost)) == "ticket_restart"


async def test_a_new_coordinator_sums_the_shards_and_voids_old_leases(tmp_path):
    cluster = await Cluster(tmp_path).begin()
    await cluster.train(0)
    await cluster.fill(version=1)
    old = await cluster.port.lease(1)
    cluster.restart_coordinator()
    with pytest.raises(StaleEpochError):
        await cluster.port.commit(1, old.lease_id)
    assert cluster.coordinator._admission().due is None  # no burst
    fresh = await cluster.port.lease(1)
    assert {g.group_id for g in fresh.groups} == {g.group_id for g in old.groups}
    assert fresh.lease_id != old.lease_id


async def test_a_commit_cut_short_by_the_coordinators_death_is_completed_by_its_repetition(tmp_path):
    cluster = await Cluster(tmp_path).begin()
    await cluster.fill()
    batch = await cluster.port.lease(0)
    await cluster.shards[0].shard.commit(0, batch.lease_id, None, {}, {})
    cluster.restart_coordinator()
    with pytest.raises(StaleEpochError, match=r"committed \[0, 1\] steps: a commit was cut short"):
        await cluster.port.lease(1)
    await cluster.port.commit(0, batch.lease_id)
    assert {shard.shard._core.state.steps_committed for shard in cluster.shards} == {1}


async def test_rollback_reconciles_every_shard_to_its_share_of_the_manifest(tmp_path):
    cluster = await Cluster(tmp_path).begin()
    batches = dict(enumerate([await cluster.train(step) for step in range(3)]))
    manifest = {**batches, 1: [*batches[1][:-1], "known to the weights alone"]}
    await cluster.port.rollback(2, manifest)
    histories = [shard.shard._core.state.history for shard in cluster.shards]
    for step in (0, 1):
        merged = [name for history in histories for name in history[step].trained]
        assert sorted(merged) == sorted(manifest[step])
    assert {len(history) for history in histories} == {2}
    assert (await cluster.port.stats())["groups_adopted"] == 1
    again = await cluster.port.lease(2)
    assert set(batches[2]) & {g.group_id for g in again.groups}


async def test_an_expired_lease_goes_back_in_every_shard(tmp_path):
    cluster = await Cluster(tmp_path, lease_timeout_s=5.0).begin()
    await cluster.fill()
    old = await cluster.port.lease(0)
    cluster.now = 6.0
    fresh = await cluster.port.lease(0)
    assert fresh.lease_id != old.lease_id
    assert {g.group_id for g in fresh.groups} == {g.group_id for g in old.groups}
    with pytest.raises(StaleEpochError):
        await cluster.port.commit(0, old.lease_id)


async def test_prioritised_draws_over_shards_follow_the_weights_of_all(tmp_path):
    table = TableConfig(order="prioritised", priority="ratio")
    cluster = Cluster(tmp_path, quotas={"expert": 1}, groups_per_update=1, tables={"expert": table})
    await cluster.begin()
    heavy, counts = "e3", Counter()
    for step in range(120):
        batch = await cluster.port.lease(step)
        (group,) = batch.groups
        counts[group.group_id] += 1
        loss = {"ratio": 11.0 if group.group_id == heavy else 1.0}
        await cluster.port.commit(step, batch.lease_id, measured={group.group_id: loss})
    assert 35 < counts[heavy] < 85  # half of the weight lies on it
    assert len(counts) == 12
