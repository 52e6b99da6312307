"""What a replay cache knows after its process died."""

import dataclasses
import json
import shutil

import pytest

from actors.config import ReplayConfig
from actors.ports import StaleEpochError
from actors.replay.core import ReplayCore
from actors.replay.log import CorruptLogError, ReplayLog
from actors.replay.records import Status
from rewards import verdict
from rewards.trajectory import PolicyVersion
from rewards.verdict import Verdict
from tests.actors.replay.drivers import drops, expert, full_disk, ids, lease, live, make_core, store, take, train

MIXED = {"groups_per_update": 4, "max_age": 2, "quotas": {"expert": "1/2"}}


def mixed_core(folder, **settings):
    core = make_core(folder, seed=7, **{**MIXED, **settings})
    core.preload([expert(f"e{i}") for i in range(5)])
    return core


@pytest.mark.parametrize("snapshot_after", [None, 2, 5])
def test_the_same_log_gives_the_same_batches(tmp_path, snapshot_after):
    core = mixed_core(tmp_path / "a")
    for step in range(5):
        train(core)
        if snapshot_after == step + 1:
            core.snapshot()
    store(core, 5, 4, 3)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    restored = [mixed_core(tmp_path / name) for name in "ab"]
    assert restored[0].state.to_json() == restored[1].state.to_json()
    batches = train(restored[0], 4)
    assert batches == train(restored[1], 4)
    uninterrupted = [[group_id.replace("t1-", "t2-") for group_id in batch] for batch in train(core, 4)]
    assert uninterrupted == [[group_id.replace("t1-", "t2-") for group_id in batch] for batch in batches]


def test_a_snapshot_restores_what_the_whole_journal_does(tmp_path):
    core = mixed_core(tmp_path / "a")
    train(core, 3)
    core.seal(1)
    store(core, 3, 3)
    lease_id = lease(core).lease_id
    core.snapshot()
    core.commit(3, lease_id)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "snapshot.json").unlink()
    by_snapshot, by_journal = (mixed_core(tmp_path / name) for name in "ab")
    assert by_snapshot.state.to_json() == by_journal.state.to_json()
    held = {name: by_journal.state.payloads.get(name) for name in by_journal.state.payloads}
    assert {name: by_snapshot.state.payloads.get(name) for name in by_snapshot.state.payloads} == held


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_snapshot_costs_time_not_data(tmp_path, damage):
    core = mixed_core(tmp_path)
    train(core, 2)
    path = tmp_path / "snapshot.json"
    assert core.snapshot() == str(path)
    train(core, 1)
    body = path.read_bytes()
    path.write_bytes({"cut": body[:-10], "flipped": body.replace(b'"boot":1', b'"boot":2'), "empty": b""}[damage])
    again = mixed_core(tmp_path)
    assert (again.state.boot, again.state.steps_committed) == (2, 3)


def test_tickets_and_the_lease_of_the_dead_process_are_void(tmp_path):
    core = make_core(tmp_path, groups_per_update=1, max_age=1)
    (group_id,) = store(core, 0)
    held, old = take(core), lease(core)
    again = make_core(tmp_path, groups_per_update=1, max_age=1)
    assert (again.state.boot, again.state.epoch) == (2, 2)
    assert again.state.ticket_fates == {"stored": 1, "restart": 1}
    assert again.put(live(held)) == "ticket_restart"
    with pytest.raises(StaleEpochError):
        again.commit(0, old.lease_id)
    fresh = lease(again)
    assert (ids(fresh), fresh.epoch) == ([group_id], 2)
    assert fresh.lease_id != old.lease_id
    assert take(again).ticket_id not in (held.ticket_id, "t1-0")


def test_repeated_calls_are_recognised_across_a_restart(tmp_path):
    core = make_core(tmp_path, groups_per_update=1, max_age=0)
    good = live(take(core))
    core.put(good)
    batch = lease(core)
    core.commit(0, batch.lease_id)
    bad = live(take(core), scores=(None, None))
    core.put(bad)
    again = make_core(tmp_path, groups_per_update=1, max_age=0)
    again.commit(0, batch.lease_id)
    assert again.put(good) is None
    assert again.put(bad) == "unscored"
    assert (again.state.steps_committed, again.state.counters["accepted"]) == (1, 1)
    assert drops(again) == {"live/unscored": 1}


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_torn_last_event_never_happened(tmp_path, cut):
    core = make_core(tmp_path, groups_per_update=1, max_age=1)
    (first,) = store(core, 0)
    before = (tmp_path / "journal.jsonl").read_bytes()
    core.put(live(take(core)))
    whole = (tmp_path / "journal.jsonl").read_bytes()
    last = whole[whole.rstrip(b"\n").rfind(b"\n") + 1 :]
    (tmp_path / "journal.jsonl").write_bytes(whole[: len(whole) - len(last)] + last[:cut])
    again = make_core(tmp_path, groups_per_update=1, max_age=1)
    assert list(again.state.entries) == [first]
    assert again.state.ticket_fates == {"stored": 1, "restart": 1}
    assert (tmp_path / "journal.jsonl").read_bytes().startswith(before)
    assert make_core(tmp_path, groups_per_update=1, max_age=1).state.boot == 3


def test_damage_in_the_middle_of_the_journal_is_refused(tmp_path):
    train(make_core(tmp_path), 2)
    path = tmp_path / "journal.jsonl"
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)
    with pytest.raises(CorruptLogError, match="begins a damaged event, but intact ones follow"):
        make_core(tmp_path)


def test_groups_whose_blocks_are_lost_are_evicted_and_replaced(tmp_path):
    core = mixed_core(tmp_path)
    ((*_, trained, _),) = train(core)
    ready = store(core, 1, 1)
    (block,) = (tmp_path / "blocks").glob("live-*.blk")
    block.unlink()
    again = mixed_core(tmp_path)
    assert drops(again) == {"live/lost": 2}
    assert again.state.entries[ready[0]].reason == "lost"
    assert again.state.entries[trained].status is Status.SEALED  # the gradient has it
    assert again.live_demand() == [2, 2, 2]
    assert again.state.num_ready()["live"] == 0
    train(again, 1)


def test_a_block_of_another_group_is_not_taken_for_the_lost_one(tmp_path):
    scores = {"a": (1.0, 0.0), "b": (0.0, 1.0)}
    for name in "ab":
        core = make_core(tmp_path / name)
        core.put(live(take(core), scores=scores[name]))
    shutil.copytree(tmp_path / "b" / "blocks", tmp_path / "a" / "blocks", dirs_exist_ok=True)
    assert drops(make_core(tmp_path / "a")) == {"live/lost": 1}


def test_a_damaged_block_costs_one_group(tmp_path):
    core = make_core(tmp_path, groups_per_update=2)
    store(core, 0, 0)
    (block,) = (tmp_path / "blocks").glob("live-*.blk")
    body = bytearray(block.read_bytes())
    body[-20] ^= 1
    block.write_bytes(body)
    again = make_core(tmp_path, groups_per_update=2)
    assert drops(again) == {"live/lost": 1}
    assert again.state.num(Status.READY) == 1


def test_blocks_go_with_the_last_group_that_needs_them(tmp_path):
    core = make_core(tmp_path, groups_per_update=1, max_age=0)
    train(core, 1)
    make_core(tmp_path, groups_per_update=1, max_age=0)
    core = make_core(tmp_path, groups_per_update=1, max_age=0)
    train(core, 1)
    assert len(list((tmp_path / "blocks").iterdir())) == 2
    core.seal(1)
    core.snapshot()
    kept = list((tmp_path / "blocks").iterdir())
    assert len(kept) == 1  # the file being written
    make_core(tmp_path, groups_per_update=1, max_age=0).snapshot()
    assert list((tmp_path / "blocks").iterdir()) == []


def test_history_stays_as_it_was_written_when_settings_change(tmp_path):
    core = make_core(tmp_path, groups_per_update=1, max_age=1, max_uses={"live": 1})
    train(core, 1)
    (waiting,) = store(core, 1)
    again = make_core(tmp_path, groups_per_update=1, max_age=3, max_uses={"live": 2})
    assert again.state.num(Status.COMMITTED) == 1  # spent when it was trained, and still
    assert ids(lease(again)) == [waiting]
    again.commit(1, lease(again).lease_id)
    assert again.state.entries[waiting].status is Status.COMMITTED
    (fresh,) = store(again, 1)
    again.commit(2, lease(again).lease_id)
    assert again.state.entries[fresh].status is Status.READY


def test_a_rollback_after_a_restart_undoes_what_no_checkpoint_covers(tmp_path):
    core = mixed_core(tmp_path)
    batches = train(core, 3)
    again = mixed_core(tmp_path)
    again.rollback(1, {0: batches[0]})
    assert train(again, 2) == batches[1:]


CALLS = {
    "take_ticket": lambda core, group, batch: core.take_ticket("w", 2, 0.0),
    "return_ticket": lambda core, group, batch: core.return_ticket(group.ticket_id, "failed"),
    "put": lambda core, group, batch: core.put(group),
    "refused put": lambda core, group, batch: core.put(live_without_scores(group)),
    "preload": lambda core, group, batch: core.preload([expert("new")]),
    "commit": lambda core, group, batch: core.commit(batch.step, batch.lease_id),
    "announce": lambda core, group, batch: core.announce_version(PolicyVersion(99), 1),
    "seal": lambda core, group, batch: core.seal(0),
    "rollback": lambda core, group, batch: core.rollback(0, {}),
    "expire": lambda core, group, batch: core.expire(1e9),
}


def live_without_scores(group):
    unscored = Verdict.unscored(verdict.Status.INFRA_ERROR)
    return dataclasses.replace(group, trajectories=tuple(t.with_verdict(unscored) for t in group.trajectories))


@pytest.mark.parametrize("room", [0, 5, 20])
@pytest.mark.parametrize("name", CALLS)
def test_on_a_full_disk_a_call_raises_and_changes_nothing(tmp_path, name, room):
    core = mixed_core(tmp_path)
    train(core, 1)
    group = live(take(core), version=1)
    store(core, 1, 1)
    batch = lease(core)
    journal = tmp_path / "journal.jsonl"
    before, written = json.dumps(core.state.to_json()), journal.read_bytes()
    with full_disk(journal, room), pytest.raises(OSError):
        CALLS[name](core, group, batch)
    assert json.dumps(core.state.to_json()) == before
    assert journal.read_bytes() == written
    CALLS[name](core, group, batch)
    assert json.dumps(core.state.to_json()) != before
    again = mixed_core(tmp_path)
    assert again.state.counters["accepted"] == core.state.counters["accepted"]


def test_a_full_disk_does_not_break_a_lease(tmp_path):
    core = make_core(tmp_path, groups_per_update=1)
    (group_id,) = store(core, 0)
    with full_disk(tmp_path / "journal.jsonl", 10), pytest.raises(OSError):
        lease(core)
    assert core.state.entries[group_id].status is Status.READY
    assert ids(lease(core)) == [group_id]


def test_a_full_disk_after_a_commit_does_not_let_old_groups_through(tmp_path):
    core = make_core(tmp_path, groups_per_update=1, max_age=0, max_uses={"live": 2})
    (group_id,) = store(core, 0)
    batch = lease(core)
    committed = len(b'00000000 {"kind":"committed","lease":"l1-0-0","dropped":{}}\n')
    with full_disk(tmp_path / "journal.jsonl", committed), pytest.raises(OSError):
        core.commit(0, batch.lease_id)  # there is no room for the eviction that follows
    assert (core.state.steps_committed, core.state.entries[group_id].status) == (1, Status.READY)
    core.commit(0, batch.lease_id)
    assert core.lease(1, 0.0) is None
    assert drops(core) == {"live/too_old": 1}


def test_without_a_log_there_is_nothing_to_snapshot():
    assert make_core().snapshot() == ""


def test_a_process_that_replaces_another_of_the_same_start_keeps_tickets_and_lease(tmp_path):
    def opened(incarnation, now=0.0):
        log = ReplayLog(tmp_path, fsync="never")
        return ReplayCore(ReplayConfig(groups_per_update=2), log=log, incarnation=incarnation, now=now)

    core = opened(0)
    core.announce_version(PolicyVersion(0), 0)
    store(core, 0, 0)
    batch, held = lease(core), core.take_ticket("rollout-0", 2, 0.0, "request-1")
    assert held is not None
    again = opened(0, now=1000.0)
    assert again.take_ticket("rollout-0", 2, 1000.0, "request-1") == held, "a repeated request got another ticket"
    assert again.next_deadline() == 1000.0 + again.config.lease_timeout_s
    assert lease(again).lease_id == batch.lease_id
    assert again.put(live(held)) is None
    again.commit(0, batch.lease_id)
    assert drops(again) == {}
    resumed = opened(1)
    assert resumed.state.steps_committed == 1
    assert not resumed.state.tickets


def test_leased_groups_of_a_snapshot_still_count_for_admission(tmp_path):
    def opened():
        log = ReplayLog(tmp_path, fsync="never")
        return ReplayCore(ReplayConfig(groups_per_update=2, max_age=0), log=log, incarnation=0)

    core = opened()
    core.announce_version(PolicyVersion(0), 0)
    store(core, 0, 0)
    lease(core)
    core.snapshot()
    assert core.take_ticket("rollout-0", 2, 0.0) is None
    assert opened().take_ticket("rollout-0", 2, 0.0) is None, "the batch in training was forgotten"
