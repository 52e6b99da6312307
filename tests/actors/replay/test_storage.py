"""What a replay cache keeps, where, and what goes when there is too much of it."""

import shutil
from typing import Any

import pytest
from pydantic import ValidationError

from actors.config import ReplayConfig
from actors.replay.config import TableConfig
from actors.replay.core import ReplayCore
from actors.replay.log import ReplayLog
from actors.replay.payloads import Payloads
from actors.replay.records import Status
from actors.replay.selectors import Candidate
from actors.replay.tables import Table
from orchestrator.audit import audit_run
from rewards.trajectory import PolicyVersion
from tests.actors.replay.drivers import (
    WORKER,
    drops,
    expert,
    ids,
    lease,
    live,
    make_core,
    store,
    take,
    train,
    write_checkpoint,
)


def log_of(core: ReplayCore) -> ReplayLog:
    assert core._log is not None
    return core._log


def place(core: ReplayCore, group_id: str) -> list[Any]:
    blob = core.state.entries[group_id].blob
    assert blob is not None
    return blob


class TestPayloads:
    def test_keep_the_newest_in_memory_and_read_the_others_back(self):
        disk = {f"g{i}": bytes([i]) * 10 for i in range(4)}
        payloads = Payloads(25, lambda blob: disk.get(blob[0]))
        for name, data in disk.items():
            payloads.add(name, data, [name, 0, 10])
        payloads.add("nowhere else", b"x" * 100, None)
        assert (len(payloads), payloads.num_cold, payloads.memory_bytes) == (5, 4, 100)
        payloads.discard("nowhere else")
        assert payloads.get("g1") == disk["g1"]
        assert payloads.get("g3") == disk["g3"]
        assert (payloads.num_cold, payloads.memory_bytes, payloads.num_fetched) == (2, 20, 2)
        del disk["g0"]
        assert payloads.get("g0") is None
        with pytest.raises(KeyError):
            payloads.get("unknown")

    def test_spilled_groups_are_trained_on_as_they_were(self, tmp_path):
        core = make_core(tmp_path / "a", groups_per_update=2, max_age=1, memory_bytes=0)
        plain = make_core(tmp_path / "b", groups_per_update=2, max_age=1)
        batches = []
        for each in (core, plain):
            store(each, 0, 0)
            batches.append(lease(each))
        assert core.state.payloads.memory_bytes == 0
        assert core.stats()["groups_on_disk_only"] == 2
        assert ids(batches[0]) == ids(batches[1])
        for ours, theirs in zip(batches[0].groups, batches[1].groups, strict=True):
            assert (ours.trajectories[0].token_ids == theirs.trajectories[0].token_ids).all()

    def test_a_group_whose_block_is_gone_is_lost_and_counted_and_the_batch_waits_for_another(self, tmp_path):
        core = make_core(tmp_path, groups_per_update=2, max_age=1, memory_bytes=0)
        store(core, 0, 0)
        shutil.rmtree(tmp_path / "blocks")
        (tmp_path / "blocks").mkdir()
        assert core.lease(0, 0.0) is None
        assert drops(core) == {"live/lost": 2}
        assert core.shortage(0) == "need 2 live groups: 0 ready, 0 running"


class TestTables:
    @pytest.mark.parametrize(
        ("remove", "kept"),
        [
            ("fifo", {"g2", "g3"}),
            ("stalest", {"g0", "g2"}),
            ("lowest_priority", {"g1", "g2"}),
            ("most_used", {"g0", "g3"}),
        ],
    )
    def test_a_full_table_removes_as_it_says(self, remove, kept):
        table = Table(TableConfig(max_groups=2, remove=remove), "own_past", 0)
        rows = [(0, 7, 0.2), (1, 5, 0.9), (2, 9, 0.8), (0, 6, 0.1)]
        for seq, (turn, oldest, priority) in enumerate(rows):
            table.add(Candidate(f"g{seq}", turn, seq, oldest, priority, f"p{seq}", 10))
        victims = table.excess("p3")
        assert {f"g{i}" for i in range(4)} - set(victims["table_full"]) == kept
        assert list(victims) == ["table_full"]

    def test_bytes_and_prompts_have_limits_of_their_own(self):
        table = Table(TableConfig(max_bytes=100, max_per_prompt=2), "own_past", 0)
        rows = [Candidate(f"g{seq}", 0, seq, prompt_id="p" if seq else "other", num_bytes=30 + seq) for seq in range(4)]
        for row in rows:
            table.add(row)
        assert table.excess("p") == {"prompt_full": ["g1"]}
        table.remove(rows[1])
        table.add(Candidate("large", 0, 9, prompt_id="third", num_bytes=60))
        assert table.excess("third") == {"table_bytes": ["g0", "g2"]}

    def test_evictions_are_recorded_with_their_reason_and_never_hit_a_batch(self, tmp_path):
        settings = {"quotas": {"expert": 1}, "tables": {"expert": TableConfig(max_groups=3)}}
        core = make_core(tmp_path, groups_per_update=2, **settings)
        core.preload([expert("e0"), expert("e1"), expert("e2")])
        batch = lease(core)
        core.preload([expert("e3"), expert("e4"), expert("e5")])
        assert drops(core) == {"expert/table_full": 1}
        assert all(core.state.entries[group_id].status is Status.LEASED for group_id in ids(batch))
        again = make_core(tmp_path, groups_per_update=2, **settings)
        again.preload([expert(f"e{i}") for i in range(6)])
        assert again.state.counters["accepted"] == 6  # the evicted one is known, and does not come back
        assert again.state.num(Status.EVICTED) == 1

    def test_fresh_rollouts_cannot_be_evicted_for_want_of_room(self):
        with pytest.raises(ValidationError, match=r"tables.live has max_groups.*replay.held_bytes"):
            ReplayConfig(tables={"live": TableConfig(max_groups=4)})


def test_too_many_held_bytes_stop_what_runs_ahead_but_never_the_next_batch():
    core = make_core(groups_per_update=2, max_age=2, held_bytes=1)
    store(core, 0, 0)
    assert core.take_ticket(WORKER, 2, 0.0) is None
    reason = core.admission().reason
    assert f"the held groups take {core.state.held_bytes} bytes, above replay.held_bytes=1" in reason
    batch = lease(core)
    core.commit(0, batch.lease_id)
    core.announce_version(PolicyVersion(1), 1)
    store(core, 1, 1)  # the next batch lacks them
    assert core.take_ticket(WORKER, 2, 0.0) is None
    assert "covers 2 trained groups" in core.admission().reason
    core.seal(0)
    assert core.state.num(Status.SEALED) == 2


class TestCompaction:
    def test_journal_and_blocks_stay_bounded_and_nothing_is_forgotten(self, tmp_path):
        folder = tmp_path / "state" / "replay"
        core = make_core(folder, groups_per_update=2, max_age=1, journal_bytes=4000, memory_bytes=0)
        sizes = []
        for step in range(30):
            train(core)
            core.snapshot()
            core.seal(step)
            sizes.append((folder / "journal.jsonl").stat().st_size)
        ready = live(take(core), version=max(core.state.versions))
        core.put(ready)
        core.snapshot()
        generation = log_of(core).journal.generation
        assert generation > 1
        assert max(sizes) < 20_000  # the history of 30 steps, the newest groups, and 4000 bytes of events
        again = make_core(folder, groups_per_update=2, max_age=1)
        assert log_of(again).journal.generation == generation
        assert (again.state.steps_committed, again.state.num_ready()) == (30, {"live": 1})
        assert again.state.counters["accepted"] == 61
        train(again, 2)
        manifest = {step: row.trained for step, row in core.state.history.items()}
        write_checkpoint(tmp_path / "checkpoints", 30, manifest)
        report = audit_run(tmp_path)
        assert report.findings == ()
        assert (report.steps_committed, report.groups["live", "sealed", "before this journal"] > 40) == (32, True)
        assert sum(report.tickets.values()) == again.state.counters["tickets_issued"]

    @pytest.mark.parametrize("dies", ["before the rename", "before the snapshot"])
    def test_a_crash_in_between_leaves_one_whole_journal(self, tmp_path, monkeypatch, dies):
        folder = tmp_path / "state" / "replay"
        core = make_core(folder, groups_per_update=2, max_age=1, journal_bytes=1)
        train(core, 3)
        core.snapshot()
        train(core, 2)
        before = core.state.to_json()
        if dies == "before the rename":
            shutil.copy(folder / "journal.jsonl", folder / "journal.new")
            with (folder / "journal.new").open("r+b") as file:
                file.truncate(30)
        else:
            monkeypatch.setattr(log_of(core), "snapshot", lambda *_: (_ for _ in ()).throw(OSError("died")))
            with pytest.raises(OSError, match="died"):
                core.snapshot()
        log_of(core).close()
        again = make_core(folder, groups_per_update=2, max_age=1, journal_bytes=1)
        assert (again.state.steps_committed, again.state.history) == (5, core.state.history)
        assert again.state.counters["accepted"] == before["counters"]["accepted"]
        assert audit_run(tmp_path).findings == ()
        again.snapshot()
        assert log_of(again).journal.generation == (2 if dies == "before the rename" else 3)

    def test_needed_blocks_leave_files_that_are_mostly_dead(self, tmp_path):
        folder = tmp_path / "state" / "replay"
        core = make_core(folder, groups_per_update=2, max_age=3, memory_bytes=0)
        log_of(core).blocks._max_file_bytes = 6000
        kept = store(core, 0)[0]
        fillers = [live(take(core)) for _ in range(7)]
        for group in fillers:
            core.put(group)
        first = place(core, kept)[0]
        core._record({"kind": "evicted", "groups": [g.group_id for g in fillers], "reason": "test"})
        store(core, 0, 0, 0, 0, 0, 0)
        core.snapshot()
        moved = place(core, kept)
        assert moved[0] != first
        assert not (folder / "blocks" / first).exists()
        again = make_core(folder, groups_per_update=2, max_age=3)
        assert place(again, kept) == moved
        assert kept in ids(lease(again))
        assert audit_run(tmp_path).findings == ()
